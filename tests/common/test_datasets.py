"""Data sets: the mirror first, then a download; nothing is used before its sha256 is checked."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from stages.common.datasets import fetch, in_mirror
from stages.common.stage.errors import InputError
from tests.common.workspace import ROOT

CONTENT = b"a data set\n" * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENCORE_MIRROR", raising=False)
    (tmp_path / "mirror" / "toy").mkdir(parents=True)
    return tmp_path


class Home(SimpleHTTPRequestHandler):
    """A data set's home that resumes; remembers what was asked of it, and breaks off where it is told to."""

    asked: list[str]
    ranges: list[str | None]
    break_after: int | None = None

    def do_GET(self) -> None:
        content = Path(self.translate_path(self.path)).read_bytes()
        wanted = self.headers["Range"]
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : type(self).break_after])

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.asked.append(self.path)


@pytest.fixture
def handler() -> type[Home]:
    return type("Handler", (Home,), {"asked": [], "ranges": []})


@pytest.fixture
def home(tmp_path: Path, handler: type[Home]) -> Iterator[tuple[str, list[str]]]:
    """Address of a web server on this machine that has `toy.bin`, and the paths that were asked for."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "toy.bin").write_bytes(CONTENT)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(tmp_path / "home"))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/toy.bin", handler.asked
        server.shutdown()
        thread.join()


def register(folder: Path, sha256: str = SHA256, url: str | None = None) -> None:
    entry = {"sha256": sha256, **({"url": url} if url else {})}
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "registry.yaml").write_text(yaml.safe_dump({"toy": {"files": {"toy.bin": entry}}}))


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_the_mirror_comes_first(
    folder: Path, home: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(folder, url=home[0])
    (folder / "mirror" / "toy" / "toy.bin").write_bytes(CONTENT)
    assert not in_mirror("toy", "toy.bin")
    monkeypatch.setenv("ENCORE_MIRROR", str(folder / "mirror"))
    assert in_mirror("toy", "toy.bin")
    assert fetch("toy", "toy.bin") == folder / "mirror" / "toy" / "toy.bin"
    assert home[1] == []
    assert not (folder / "data" / "raw").exists()


def test_a_mirror_without_the_file_is_passed_over(
    folder: Path, home: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(folder, url=home[0])
    monkeypatch.setenv("ENCORE_MIRROR", str(folder / "mirror"))
    assert fetch("toy", "toy.bin").read_bytes() == CONTENT
    assert home[1] == ["/toy.bin"]


def test_a_wrong_file_in_the_mirror_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(folder)
    (folder / "mirror" / "toy" / "toy.bin").write_bytes(CONTENT[:-1] + b"?")
    monkeypatch.setenv("ENCORE_MIRROR", str(folder / "mirror"))
    with pytest.raises(
        InputError, match=r"mirror/toy/toy\.bin: sha256 is not the one in data/registry\.yaml"
    ):
        fetch("toy", "toy.bin")


def test_a_download_is_checked_and_kept(folder: Path, home: tuple[str, list[str]]) -> None:
    register(folder, url=home[0])
    path = fetch("toy", "toy.bin")
    assert path.resolve() == folder / "data" / "raw" / "toy" / "toy.bin"
    assert path.read_bytes() == CONTENT
    assert fetch("toy", "toy.bin") == path
    assert home[1] == ["/toy.bin"]  # once
    path.write_bytes(b"damaged")
    assert fetch("toy", "toy.bin").read_bytes() == CONTENT
    assert home[1] == ["/toy.bin"] * 2


def test_a_download_with_other_bytes_is_refused(folder: Path, home: tuple[str, list[str]]) -> None:
    register(folder, sha256=hashlib.sha256(b"other").hexdigest(), url=home[0])
    with pytest.raises(InputError, match=r"toy/toy\.bin: .*sha256") as error:
        fetch("toy", "toy.bin")
    assert "\n" not in str(error.value)
    assert [path for path in (folder / "data" / "raw").rglob("*") if path.is_file()] == []


def test_a_download_that_broke_off_goes_on(
    folder: Path, home: tuple[str, list[str]], handler: type[Home]
) -> None:
    register(folder, url=home[0])
    handler.break_after = 150_000
    with pytest.raises(InputError, match=r"toy\.bin: cannot be downloaded .* run it again to go on"):
        fetch("toy", "toy.bin")
    assert not (folder / "data" / "raw" / "toy" / "toy.bin").exists()
    handler.break_after = None
    assert fetch("toy", "toy.bin").read_bytes() == CONTENT
    assert handler.ranges == [None, "bytes=131072-"]  # whole pieces of 64 KiB are kept


def test_a_download_that_was_complete_is_not_asked_for_again(
    folder: Path, home: tuple[str, list[str]], handler: type[Home]
) -> None:
    register(folder, url=home[0])
    (folder / "data" / "raw" / "toy").mkdir(parents=True)
    (folder / "data" / "raw" / "toy" / "toy.bin.part").write_bytes(CONTENT)
    assert fetch("toy", "toy.bin").read_bytes() == CONTENT
    assert handler.ranges == [f"bytes={len(CONTENT)}-"]


def test_offline(folder: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}/toy.bin"
    register(folder, url=url)
    with pytest.raises(InputError) as error:
        fetch("toy", "toy.bin")
    assert str(error.value) == (
        f"data/raw/toy/toy.bin: cannot be downloaded from {url} (ConnectionError); "
        "run it again to go on, or set ENCORE_MIRROR to a folder that has it"
    )


def test_a_file_that_only_a_mirror_has(folder: Path) -> None:
    register(folder)
    with pytest.raises(InputError, match=r"toy/toy\.bin: only a mirror has this file; set ENCORE_MIRROR"):
        fetch("toy", "toy.bin")


def test_every_registered_file_has_a_digest() -> None:
    registry = yaml.safe_load((ROOT / "data" / "registry.yaml").read_text())
    for name, entry in registry.items():
        assert entry.keys() >= {"home", "licence", "files"}, name
        for file in entry["files"].values():
            # a file of which no digest is known cannot be downloaded, only taken from a mirror
            assert "sha256" in file or "url" not in file
            assert len(bytes.fromhex(file.get("sha256", 64 * "0"))) == 32
            assert str(file.get("url", "https://")).startswith("https://")
