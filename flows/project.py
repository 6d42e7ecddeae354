"""The workspace and DVC's hold on it: locks, cache, run cache and `dvc.lock`, kept as `dvc repro` keeps them.

DVC runs a stage in one go: check, remove outputs, try the run cache, run the command, save, commit, write `dvc.lock`.
Here the same calls are two acts around the command, `begin` and `record`, so that the commands of several stages run at
once. Every act holds DVC's repository lock; while a command runs its files are in DVC's read-write lock, as DVC does.

DVC is not made for threads (its databases keep a connection per thread, which wait for each other for a minute), so all
of it happens in one thread of its own.
"""

import contextlib
import copy
import fcntl
import gc
import hashlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any, TextIO, TypeVar

import psutil

from flows.errors import Cancelled, FlowError
from flows.parameters import read_parameters_once
from flows.pipeline_files import PipelineFiles
from flows.plan import Plan, Step, first_line, make_plan

Log = Callable[[str], None]
T = TypeVar("T")
FOLDER = Path(".encore/flows")
WRITE_SHARE = 0.05  # of the wall time may go into rewriting dvc.lock while stages run
BUSY_SECONDS = 0.5


class Action(Enum):
    """What became of a stage, or has to."""

    UNCHANGED = "unchanged"
    RESTORED = "restored from DVC's run cache"
    RUN = "run"


class Project:
    """The DVC project in the current folder. Its acts may be called from any thread."""

    def __init__(self, log: Log = print) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dvc")
        self.root = Path.cwd()
        self.log = log
        self.repo: Any = self._do(self._open)
        self.cancelled = threading.Event()
        self.shares = False  # results are looked for in the DVC remote as well
        self._order: dict[Path, dict[str, int]] = {}  # by lock file, as are the next two
        self._unwritten: dict[Path, dict[str, Any]] = {}
        self._appended: dict[Path, set[str]] = {}
        self._write_next = 0.0
        self._held: dict[str, contextlib.ExitStack] = {}

    def _do(self, act: Callable[..., T], *arguments: Any) -> T:
        return self._thread.submit(act, *arguments).result()

    def _open(self) -> Any:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        read_parameters_once()
        self._files = PipelineFiles(self.root / FOLDER / "parsed.txt")
        try:
            return Repo(str(self.root))
        except DvcException as error:
            raise FlowError(first_line(error)) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold DVC's repository lock, waiting for whoever has it."""
        from dvc.lock import LockError
        from dvc.repo import lock_repo

        with contextlib.ExitStack() as stack:
            told = ""
            while True:
                try:
                    stack.enter_context(lock_repo(self.repo))
                    break
                except LockError:  # after three seconds
                    holder = self.lock_holder()
                    if holder != told:
                        self.log(f"waiting for the DVC lock, held by {holder}")
                        told = holder
                    self.check_cancelled()
            yield

    def lock_holder(self) -> str:
        """Who holds the repository lock, from what DVC wrote into it."""
        try:
            content = Path(self.repo.lock.lockfile).read_text().split()
        except OSError:
            content = []
        return describe_process(int(content[0])) if content and content[0].isdigit() else "another process"

    def check_cancelled(self) -> None:
        """Raise when the flow has been cancelled."""
        if self.cancelled.is_set():
            raise Cancelled("cancelled")

    def plan(self, targets: Iterable[str], force: bool = False, single: bool = False) -> Plan:
        """What has to run for these targets; `single`: of the targets themselves, as `dvc repro --single-item` would."""
        return self._do(self._plan, targets, force, single)

    def _plan(self, targets: Iterable[str], force: bool, single: bool) -> Plan:
        from dvc.exceptions import DvcException

        with self._locked(), no_collection():
            try:
                plan = make_plan(self.repo, targets, force, single)
            except DvcException as error:
                raise FlowError(first_line(error)) from error
        self._files.save()
        for number, step in enumerate(plan.steps.values()):
            if path := lock_file(step.stage):
                self._order.setdefault(path, {})[step.stage.name] = number
        return plan

    def ignore_outputs(self, plan: Plan) -> None:
        """Have git ignore what will be made, in the order in which `dvc repro` would add it to `.gitignore`."""
        self._do(self._ignore_outputs, plan)

    def _ignore_outputs(self, plan: Plan) -> None:
        from dvc.exceptions import DvcException

        with self._locked():
            for step in plan.to_run:
                for out in step.stage.outs:
                    with contextlib.suppress(DvcException):  # the stage itself will say it
                        out.ignore()

    @contextlib.contextmanager
    def pipelines(self, names: Iterable[str]) -> Iterator[bool]:
        """Be the only flow at work on these pipelines; yields whether another one had to end first."""
        folder = self.root / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        waited = False
        with contextlib.ExitStack() as stack:
            for name in sorted(names):  # everyone in the same order: no two flows wait for each other
                path = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.lock"
                waited |= self._take(stack.enter_context(path.open("a+")), name)
            yield waited

    def _take(self, file: TextIO, name: str) -> bool:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    file.seek(0)
                    pid = file.read().strip()
                    holder = describe_process(int(pid)) if pid.isdigit() else "another flow"
                    self.log(f"waiting for {holder}, which is at work on '{name}'")
                    told = True
                if self.cancelled.wait(BUSY_SECONDS):
                    self.check_cancelled()
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return told

    def begin(self, step: Step, force: bool = False) -> Action:
        """Look whether the stage has to run; if so make ready for its command, else bring it up to date."""
        from dvc.lock import LockError

        told = ""
        while True:
            try:
                return self._do(self._begin, step, force)
            except (
                LockError
            ) as error:  # its files are in use by another DVC command, whose name is in the message
                message = " ".join(str(error).split("\n\n")[0].split())
                if message != told:
                    self.log(f"{step.name} waits: {message}")
                    told = message
                if self.cancelled.wait(BUSY_SECONDS):
                    self.check_cancelled()

    def _begin(self, step: Step, force: bool) -> Action:
        with self._locked():
            return self._begin_locked(step, force)

    def _begin_locked(self, step: Step, force: bool) -> Action:
        from dvc.rwlock import rwlock
        from dvc.stage.cache import RunCacheNotFoundError

        stage = step.stage
        if not force and not stage.changed():
            return Action.UNCHANGED
        if not stage.cmd or stage.frozen:  # data that was added or imported: DVC has all there is to do
            stage.run()
            self._write_later(stage)
            return Action.RESTORED
        stage.remove_outs(ignore_remove=False, force=False)
        if not force:
            try:
                self.repo.stage_cache.restore(stage, pull=self.shares)
            except RunCacheNotFoundError:
                stage.save_deps()
            else:
                self._save(stage)
                return Action.RESTORED
        command = (
            f"{' '.join(sys.argv)} ({step.name})"  # a name of its own: two stages may read the same file
        )
        hardlink = self.repo.config["core"].get("hardlink_lock", False)
        reads, writes = _local_paths(stage.deps), _local_paths(stage.outs)
        held = contextlib.ExitStack()
        held.enter_context(rwlock(self.repo.tmp_dir, self.repo.fs, command, reads, writes, hardlink))
        self._held[step.name] = held
        return Action.RUN

    def record(self, step: Step) -> None:
        """Save what the stage's command has made: cache, run cache, `dvc.lock`."""
        self._do(self._record, step)

    def _record(self, step: Step) -> None:
        with self._locked():
            self._let_go(step)
            self._save(step.stage)

    def _save(self, stage: Any) -> None:
        no_cache = any(not out.use_cache for out in stage.outs if not (out.is_metric or out.is_plot))
        stage.save(run_cache=not no_cache)
        stage.commit()
        self._write_later(stage)

    def share_inputs(self, step: Step, plan: Plan) -> dict[str, Any]:
        """Push what the stages that this one depends on have made to the DVC remote; returns their entries by lock file."""
        return self._do(self._share_inputs, [plan.steps[name].stage for name in step.upstream])

    def _share_inputs(self, stages: list[Any]) -> dict[str, Any]:
        from dvc.stage import serialize

        entries: dict[str, Any] = {}
        with self._locked():
            for stage in stages:
                self._push(stage)
                if path := lock_file(stage):
                    name = str(path.relative_to(self.root))
                    entries[name] = entries.get(name, {}) | serialize.to_lockfile(stage)
        return entries

    def share(self, plan: Plan) -> None:
        """Push what the plan's stages that are up to date have made, and the run cache, to the DVC remote."""
        self._do(self._share, [step.stage for step in plan.steps.values() if not step.runs])

    def _share(self, stages: list[Any]) -> None:
        with self._locked():
            for stage in stages:
                self._push(stage)
            self._push_run_cache()

    def receive(self, entries: dict[str, Any], upstream: list[str]) -> None:
        """Get what another clone has shared: its entries by lock file, these stages' outputs, and the run cache."""
        self._do(self._receive, entries, upstream)

    def _receive(self, entries: dict[str, Any], upstream: list[str]) -> None:
        with self._locked():
            for path, shared in entries.items():
                order = {name: number for number, name in enumerate(shared)}
                update_lock_file(self.root / path, shared, order, set())
            self.repo._reset()
            for name in upstream:
                for stage in self.repo.stage.collect(name):
                    for objects in stage.get_used_objs().values():
                        self.repo.cloud.pull(objects)
                    stage.checkout()
            self._pull_run_cache()

    def share_result(self, step: Step) -> None:
        """Push what the stage has made, and its entry of the run cache, to the DVC remote."""
        self._do(self._share_result, step.stage)

    def _share_result(self, stage: Any) -> None:
        with self._locked():
            self._push(stage)
            self._push_run_cache()

    def record_shared(self, step: Step) -> None:
        """Save what another clone has made of the stage, which is in the DVC remote: cache, run cache, `dvc.lock`."""
        self._do(self._record_shared, step)

    def _record_shared(self, step: Step) -> None:
        with self._locked():
            self._pull_run_cache()
            self._let_go(step)  # DVC itself locks what it restores
            self.repo.stage_cache.restore(step.stage, pull=True)
            self._save(step.stage)

    def _push(self, stage: Any) -> None:
        for objects in stage.get_used_objs().values():
            self.repo.cloud.push(objects)

    def _push_run_cache(self) -> None:
        self.repo.stage_cache.transfer(self.repo.cache.legacy, self._remote_run_cache(), force=False)

    def _pull_run_cache(self) -> None:
        self.repo.stage_cache.transfer(self._remote_run_cache(), self.repo.cache.legacy, force=False)

    def _remote_run_cache(self) -> Any:
        return self.repo.cloud.get_remote_odb(None, "flows", hash_name="md5-dos2unix")

    def discard(self, step: Step) -> None:
        """Remove what a command that failed or was ended has left of its outputs; nothing, when it has been recorded."""
        self._do(self._discard, step)

    def _discard(self, step: Step) -> None:
        if step.name not in self._held:
            return
        for out in step.stage.outs:
            if out.protocol != "local":
                continue
            path = Path(out.fs_path)
            if not out.persist:
                out.remove(ignore_remove=False)
            shutil.rmtree(path.with_name(f".{path.name}.tmp"), ignore_errors=True)
        self._let_go(step)

    def _let_go(self, step: Step) -> None:
        if held := self._held.pop(step.name, None):
            held.close()

    def _write_later(self, stage: Any) -> None:
        from dvc.stage import serialize

        path = lock_file(stage)
        if path is None:
            stage.dump(update_pipeline=False)
            return
        # a copy: YAML would write what two entries share as an anchor and an alias
        self._unwritten.setdefault(path, {}).update(copy.deepcopy(serialize.to_lockfile(stage)))
        if time.monotonic() >= self._write_next:
            self._write()

    def flush(self) -> None:
        """Write to `dvc.lock` what is not there yet."""
        self._do(self._flush)

    def _flush(self) -> None:
        if self._unwritten:
            with self._locked():
                self._write()

    def _write(self) -> None:
        """Write `dvc.lock`, atomically, entries in the order in which `dvc repro` would have appended them.

        Parsing and writing a long lock file takes longer than many a stage, so finished stages are written together:
        no more often than costs `WRITE_SHARE` of the time. A flow that is killed loses nothing by it: what it had
        not written yet is in the run cache.
        """
        start = time.monotonic()
        for path, entries in list(self._unwritten.items()):
            update_lock_file(path, entries, self._order[path], self._appended.setdefault(path, set()))
            self.repo.scm_context.track_file(os.path.relpath(path))
            del self._unwritten[path]
        spent = time.monotonic() - start
        self._write_next = time.monotonic() + spent / WRITE_SHARE

    def close(self) -> None:
        """Let go of DVC's databases."""
        self._do(self.repo.close)
        self._thread.shutdown()


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Without garbage collection: among the many objects of a graph, which stay, it finds nothing and takes seconds."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # nor does a later one look at them
        gc.enable()


def lock_file(stage: Any) -> Path | None:
    """The `dvc.lock` beside the stage's `dvc.yaml`; none for added or imported data, whose file is under git itself."""
    from dvc.stage import PipelineStage

    return Path(stage.dvcfile._lockfile.path) if isinstance(stage, PipelineStage) else None


def update_lock_file(path: Path, entries: dict[str, Any], order: dict[str, int], appended: set[str]) -> None:
    """Update stages of a `dvc.lock`; new ones go where `dvc repro`, which works in `order`, would put them.

    `appended` are those that earlier calls have added; new ones are put into their order, and join them.
    """
    from dvc.utils.serialize import dumps_yaml, parse_yaml_for_update
    from ruamel.yaml.comments import CommentedMap

    text = path.read_text(encoding="utf-8") if path.exists() else ""
    data = parse_yaml_for_update(text, path) if text else {}
    if not data:
        data.update({"schema": "2.0"})
    stages = data["stages"] = data.get("stages", CommentedMap())
    known = set(stages)
    for name, entry in entries.items():
        if name in known:
            stages[name] = entry
            continue
        names = list(stages)
        place = len(names)
        while place and names[place - 1] in appended and order[names[place - 1]] > order[name]:
            place -= 1
        stages.insert(place, name, entry)
        appended.add(name)
    new = dumps_yaml(data)
    if new == text:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(new)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _local_paths(items: Iterable[Any]) -> list[str]:
    """Paths of dependencies or outputs that DVC's read-write lock covers."""
    from dvc.dependency.db import AbstractDependency
    from dvc.dependency.repo import RepoDependency

    return [item.fs_path for item in items if not isinstance(item, (RepoDependency, AbstractDependency))]


def describe_process(pid: int) -> str:
    """A process by number and command."""
    try:
        command = " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return f"process {pid}"
    return f"process {pid} ({command[:120]})"
