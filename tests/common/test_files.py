"""Files are whole or absent, and what was damaged is named before anything is overwritten."""

import json
import os
import tempfile
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.results import read_parquet, results_frame, write_parquet
from stages.common.stage.errors import InputError
from stages.common.stage.files import MANIFEST, digest_of, output_dir, verified, write_atomic
from tests.common.workspace import stage, tree

CONTENT = {"a.bin": b"\x00\x01\x02" * 40, "folder/b.txt": b"text\n", "empty": b""}


def fill(path: Path, content: dict[str, bytes]) -> Path:
    with output_dir(path) as folder:
        for name, data in content.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
    return path


def test_output_appears_whole_with_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "output"
    with output_dir(path) as folder:
        (folder / "a.bin").write_bytes(b"1")
        assert not path.exists()
    assert sorted(tree(path)) == [MANIFEST, "a.bin"]
    assert os.listdir(path.parent) == ["output"]
    assert verified(path) == path


def test_an_exception_midway_leaves_the_old_output(tmp_path: Path) -> None:
    path = fill(tmp_path / "output", CONTENT)
    before = tree(tmp_path)

    def interrupted() -> None:
        with output_dir(path) as folder:
            (folder / "a.bin").write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert tree(tmp_path) == before


def test_a_new_output_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    path = fill(tmp_path / "output", CONTENT)
    fill(path, {"c": b"new"})
    assert sorted(tree(tmp_path)) == [f"output/{MANIFEST}", "output/c"]


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    for name in (".output.tmp", ".output.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.bin").write_bytes(b"half")
    fill(tmp_path / "output", {"a": b"1"})
    assert sorted(tree(tmp_path)) == [f"output/{MANIFEST}", "output/a"]


def test_write_atomic_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert tree(tmp_path).keys() == {"folder/file"}
    assert path.read_bytes() == b"two"
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "three \ud800")
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["file"]


def test_the_digest_of_an_output_is_that_of_its_content(tmp_path: Path) -> None:
    first, same = fill(tmp_path / "1", CONTENT), fill(tmp_path / "2", dict(reversed(CONTENT.items())))
    other = fill(tmp_path / "3", {**CONTENT, "a.bin": b"\x00"})
    assert digest_of(first) == digest_of(same) != digest_of(other)


contents = st.dictionaries(st.sampled_from(["a", "b", "c/d"]), st.binary(max_size=40), min_size=1)


@given(contents, st.data())
def test_any_flipped_bit_is_found(content: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = fill(Path(root, "output"), content)
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
        file = data.draw(st.sampled_from(files))
        damaged = bytearray(file.read_bytes())
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=r"damaged|missing|incomplete") as error:
            verified(path)
        assert str(path) in str(error.value)
        if file.name != MANIFEST:
            assert str(file) in str(error.value)


@given(contents, st.data())
def test_any_truncation_is_found(content: dict[str, bytes], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        path = fill(Path(root, "output"), content)
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
        file = data.draw(st.sampled_from(files))
        # a manifest's last byte is a line end, which says nothing
        longest = file.stat().st_size - (2 if file.name == MANIFEST else 1)
        file.write_bytes(file.read_bytes()[: data.draw(st.integers(0, longest))])
        with pytest.raises(InputError) as error:
            verified(path)
        assert str(file) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b'{"a.bin": 3}', b"\xff", b'{"a.bin"'])
def test_a_damaged_manifest_is_named(content: bytes, tmp_path: Path) -> None:
    path = fill(tmp_path / "output", CONTENT)
    (path / MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match=r"damaged"):
        verified(path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere: missing"):
        verified(tmp_path / "nowhere")
    path = fill(tmp_path / "output", CONTENT)
    (path / "folder" / "b.txt").unlink()
    with pytest.raises(InputError, match=r"output/folder/b\.txt: missing"):
        verified(path)
    (path / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"output: missing or incomplete"):
        verified(path)


def frame() -> pd.DataFrame:
    row = {
        "paper": "chex", "table": "T1", "method": "chex", "setting": "dense", "metric": "top1", "value": 90.0,
        "unit": "%", "seed": 0, "scale": "quick", "data": "digits", "run_id": "0", "git_rev": "0",
    }  # fmt: skip
    return results_frame([row, {**row, "seed": 1}])


def test_truncated_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.parquet"
    write_parquet(frame(), path)
    assert read_parquet(path).equals(frame())
    whole = path.read_bytes()
    for size in (0, 3, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"results\.parquet: damaged") as error:
            read_parquet(path)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"nothing\.parquet: missing"):
        read_parquet(tmp_path / "nothing.parquet")


def test_a_flipped_byte_in_prepared_data_stops_the_stage(pretrained: Path) -> None:
    damaged = pretrained / "data/chex/quick/digits.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    before = tree(pretrained)
    result = stage(pretrained, "chex.pretrain", "--seed", "0")
    assert result.returncode == 3
    assert result.stderr == (
        "error: data/chex/quick/digits.safetensors: damaged (sha256 is not the one in MANIFEST.json); "
        "`dvc checkout` restores it\n"
    )
    assert tree(pretrained) == before


def test_missing_and_truncated_inputs_stop_the_stage(pretrained: Path) -> None:
    result = stage(pretrained, "chex.prune", "--method", "chex", "--seed", "1", ENCORE_WARM="1")
    assert result.returncode == 3
    assert result.stderr.startswith("error: runs/chex/quick/pretrain/1: missing or incomplete")
    weights = pretrained / "runs/chex/quick/pretrain/0/digits-half.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    before = tree(pretrained)
    result = stage(pretrained, "chex.prune", "--method", "l1", "--seed", "0", ENCORE_WARM="1")
    assert result.returncode == 3
    assert result.stderr.startswith("error: runs/chex/quick/pretrain/0/digits-half.safetensors: damaged")
    assert len(result.stderr.splitlines()) == 1
    assert tree(pretrained) == before


def test_manifest_lists_every_file(tmp_path: Path) -> None:
    path = fill(tmp_path / "output", CONTENT)
    assert sorted(json.loads((path / MANIFEST).read_text())) == sorted(CONTENT)
