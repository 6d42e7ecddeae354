"""Experiments in checkouts of their own: killed and taken up again, with GPU slots, under names of their own."""

import fcntl
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from flows import sweep
from flows.errors import Killed
from flows.experiments import experiment_name, experiment_ref
from flows.plan import Needs, needs_together
from tests.flows.project import git, make_project, resumable, wait_for, written


def test_experiment_killed_midway_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has what is not committed; the workspace stays as it is; done, it leaves nothing but the experiment."""
    home = make_project(tmp_path / "home", resumable(), {"params.yaml": "x: 1\n"})
    (home / "source.txt").write_text("not committed\n")
    monkeypatch.chdir(home)
    monkeypatch.setattr(sweep, "flow_run_id", lambda: "run")
    commit = git(home, "rev-parse", "HEAD").strip()
    changes = subprocess.run(["git", "diff", "HEAD"], capture_output=True, check=True).stdout
    folder = home / f".encore/worker/{commit[:12]}-name"
    lab = sweep.open_lab(["a"], force=False, workers=False, log=print)
    killed: list[Killed] = []

    def first() -> None:
        try:
            lab.run("name", ["x=7"], commit, changes, print)
        except Killed as error:
            killed.append(error)

    attempt = threading.Thread(target=first)
    attempt.start()
    wait_for(lambda: written(folder / "pid"), "the stage")
    (dvc,) = (p for p in psutil.Process().children() if {"exp", "run"} <= set(p.cmdline()))
    dvc.kill()
    attempt.join()
    assert [str(error) for error in killed] == ["killed by SIGKILL"]
    assert not experiment_ref("name")
    wait_for(lambda: not psutil.pid_exists(int(written(folder / "pid"))), "the end of the stage")

    (folder / "go").touch()
    lab.run("name", ["x=7"], commit, changes, print)
    lab.leash.close()
    lab.project.close()
    assert not folder.exists()
    ref = experiment_ref("name")
    assert git(home, "show", f"{ref}:params.yaml") == "x: 7\n"
    assert git(home, "show", f"{ref}:source.txt") == "not committed\n"
    assert git(home, "rev-parse", f"{ref}^").strip() == commit
    assert git(home, "status", "--porcelain") == " M source.txt\n"
    run = git(home, "show", f"{ref}:dvc.lock")  # the stage has counted to ten, each number once
    assert "size: 21" in run


def test_experiments_do_not_share_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(
        make_project(tmp_path / "home", {"a": resumable()["a"] | {"meta": {"gpu": "optional"}}})
    )
    monkeypatch.setenv("ENCORE_GPUS", f"{tmp_path.name}-0,{tmp_path.name}-1")
    said: list[str] = []
    lab = sweep.open_lab(["a"], force=False, workers=False, log=said.append)
    with lab.reserved(said.append) as first, lab.reserved(said.append) as second:
        assert {first.gpu, second.gpu} == {f"{tmp_path.name}-0", f"{tmp_path.name}-1"}
        lab.project.cancelled.set()
        with pytest.raises(sweep.Cancelled), lab.reserved(said.append):
            pass
        assert said == [f"waits for a GPU: all of {tmp_path.name}-0, {tmp_path.name}-1 are taken"]
    with lab.reserved(said.append) as again:
        assert again.gpu == f"{tmp_path.name}-0"
    lab.project.close()


def test_checkout_is_needed_until_its_runs_are_sent(tmp_path: Path) -> None:
    spool = tmp_path / "tracking"
    assert sweep.all_sent(spool)
    spool.mkdir()
    assert sweep.all_sent(spool)
    (spool / "run.jsonl").touch()
    assert not sweep.all_sent(spool)
    (spool / "run.jsonl").unlink()
    with (spool / "lock").open() as lock:  # as the process that sends them does
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not sweep.all_sent(spool)
    assert sweep.all_sent(spool)


@pytest.mark.parametrize(
    ("stages", "together"),
    [
        ([], Needs()),
        ([Needs(), Needs("optional", 2, 4)], Needs("optional", 2)),
        ([Needs("shared"), Needs("shared")], Needs("shared")),
        ([Needs("optional"), Needs("shared")], Needs(1)),
        ([Needs(1, 3), Needs("optional")], Needs(1, 3)),
    ],
)
def test_needs_of_stages_one_after_another(stages: list[Needs], together: Needs) -> None:
    assert needs_together(stages) == together


def test_names_differ_where_experiments_do() -> None:
    papers = [f"a-long-name-of-a-paper-{number}" for number in range(10)]
    choices = [(["x=1"], "c", b""), (["x=2"], "c", b""), (["x=1"], "d", b""), (["x=1"], "c", b"changes")]
    names = {experiment_name(papers, *choice) for choice in choices}
    assert len(names) == len(choices)
    assert experiment_name(papers, *choices[0]) in names
