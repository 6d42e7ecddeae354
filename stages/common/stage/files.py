"""Files that are either whole or absent: atomic writing, and inputs checked before they are used."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.common.stage.errors import InputError

MANIFEST = "MANIFEST.json"


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` such that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def output_dir(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under its final name only when it is complete, with a manifest.

    The block writes into the yielded temporary folder. When it ends without an error, a manifest of
    sha256 digests is added and the folder replaces `path`; otherwise nothing of it remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(f".{path.name}.tmp"), path.with_name(f".{path.name}.old")
    for left in (temporary, old):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        digests = {
            str(file.relative_to(temporary)): sha256(file)
            for file in sorted(temporary.rglob("*"))
            if file.is_file()
        }
        write_atomic(temporary / MANIFEST, json.dumps(digests, indent=1) + "\n")
        if path.exists():
            path.rename(old)  # not removed here: a kill would leave a part of it
        temporary.rename(path)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)


def verified(path: Path) -> Path:
    """Return `path`, a folder made by `output_dir`, after checking every file against its manifest.

    Raises:
        InputError: the folder, its manifest or a file is missing, or a file's bytes have changed.
    """
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise InputError(f"{path}: missing or incomplete (no {MANIFEST}); run `dvc repro` of its stage first")
    try:
        digests: dict[str, str] = json.loads(manifest.read_text())
        if not isinstance(digests, dict):
            raise ValueError
    except ValueError:
        raise InputError(f"{manifest}: damaged (not a list of files); `dvc checkout` restores it") from None
    for name, digest in digests.items():
        file = path / name
        if not file.is_file():
            raise InputError(f"{file}: missing, though {MANIFEST} lists it; `dvc checkout` restores it")
        if sha256(file) != digest:
            raise InputError(
                f"{file}: damaged (sha256 is not the one in {MANIFEST}); `dvc checkout` restores it"
            )
    return path


def digest_of(path: Path) -> str:
    """Digest of a folder made by `output_dir`: that of its manifest."""
    return sha256(path / MANIFEST)
