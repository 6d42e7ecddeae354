"""A stage's command: its output line by line, its limits, and the end of its whole process tree.

The tree is everything in the command's session and everything that still writes to its standard output: a stage that
runs in the warm interpreter is no descendant of its command, but holds its output. What a stage leaves behind in
sessions of its own with their output elsewhere (the warm interpreter itself, the sender of MLflow runs) stays alive.
"""

import contextlib
import os
import pty
import re
import selectors
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import IO

import psutil

from flows.errors import Cancelled, Killed, StageFailed

POLL_SECONDS = 0.2
MEMORY_SECONDS = 1.0  # between two looks at the memory
LINGER_SECONDS = 1.0  # that processes may outlive the command before they are ended
END_SECONDS = 10.0
NO_SESSION = -1  # no process is in it
PROGRESS_SECONDS = 10.0  # between two lines of one progress bar
COLUMNS = 160
CONTROL = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-_]")
BAR = re.compile(r"[━╸╺█▏▎▍▌▋▊▉]|\d%\||\[\d\d:\d\d[<,]|^!$")  # as rich, tqdm and DVC draw them


def tree(session: int, pipe: str) -> list[int]:
    """The processes of a stage: those in `session` and those whose output is `pipe` (as in `pipe:[4026]`)."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        pid = int(entry)
        with contextlib.suppress(OSError):
            if os.getsid(pid) == session or pipe in (
                os.readlink(f"/proc/{pid}/fd/1"),
                os.readlink(f"/proc/{pid}/fd/2"),
            ):
                found.append(pid)
    return found


def alive(pids: list[int]) -> list[int]:
    """Those that are not zombies."""
    left = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                left.append(pid)
    return left


def end_tree(session: int, pipe: str, seconds: float = END_SECONDS) -> bool:
    """Kill a stage's processes, and what they start meanwhile; returns whether all are gone."""
    deadline = time.monotonic() + seconds
    while pids := alive(tree(session, pipe)):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def memory_of(pids: list[int], enough: int) -> int:
    """Bytes of memory of these processes, what they share counted once; exact only above `enough`."""
    resident = proportional = 0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            resident += psutil.Process(pid).memory_info().rss
    if resident <= enough:
        return resident
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            proportional += psutil.Process(pid).memory_full_info().pss
    return proportional


class Leash:
    """A process that ends this process's stages when this one dies, however that happens."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def hold(self, pipe: str, session: int = NO_SESSION) -> None:
        """A stage with this output is about to start, and then: has started as the leader of this session."""
        self._tell(f"+ {pipe} {session}")

    def let_go(self, pipe: str) -> None:
        """The stage with this output has ended."""
        self._tell(f"- {pipe} {NO_SESSION}")

    def _tell(self, line: str) -> None:
        with self._lock, contextlib.suppress(BrokenPipeError):
            if self._process is None:
                environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "flows.process"],
                    stdin=subprocess.PIPE, start_new_session=True, env=environment, text=True,
                )  # fmt: skip
            assert self._process.stdin is not None
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End the leash; it ends what it still holds."""
        if self._process is not None:
            self._process.communicate()


def watch(lines: IO[str]) -> None:
    """Be the leash: remember what `lines` say; when they end, so does what they named."""
    held: dict[str, int] = {}
    for line in lines:
        sign, pipe, session = line.split()
        if sign == "+":
            held[pipe] = int(session)
        else:
            held.pop(pipe, None)
    for pipe, leader in held.items():
        end_tree(leader, pipe)


class Lines:
    """Cuts output into lines; progress bars, which are drawn over and over, become a line now and then."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._rest = b""
        self._last: dict[str, float] = {}

    def feed(self, data: bytes) -> None:
        """Take what has come."""
        parts = re.split(rb"\r\n|\n|\r", self._rest + data)
        self._rest = parts.pop()
        if len(self._rest) > 1 << 16:  # something that never ends its line
            parts.append(self._rest)
            self._rest = b""
        for part in parts:
            self._line(part)

    def close(self) -> None:
        """The output has ended."""
        self._line(self._rest)
        self._rest = b""

    def _line(self, raw: bytes) -> None:
        text = CONTROL.sub(b"", raw).decode(errors="replace").rstrip()
        if not text.strip():
            return
        if BAR.search(text):
            label, now = text.split()[0], time.monotonic()
            if now - self._last.setdefault(label, now) < PROGRESS_SECONDS:
                return
            self._last[label] = now
            text = " ".join(BAR.sub("", text).split())
        self._log(text)


def _terminal() -> tuple[int, int]:
    """A pseudo-terminal, wide enough, for standard error: on it a stage shows its progress."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    return master, slave


def _streams() -> tuple[tuple[int, int], tuple[int, int]]:
    """Where to read and where to write, for standard output and standard error."""
    out = os.pipe()
    try:
        return out, _terminal()
    except OSError:  # a machine without pseudo-terminals: no progress
        return out, os.pipe()


def run_command(
    command: str | list[str],
    folder: str,
    environment: dict[str, str],
    log: Callable[[str], None],
    leash: Leash,
    cancelled: threading.Event,
    timeout: float | None = None,
    memory: int = 0,
    keep: tuple[int, ...] = (),
) -> None:
    """Run a command with its output to `log`, line by line; returns when it has succeeded and nothing of it is left.

    `keep` are descriptors that it inherits. Raises `StageFailed` (its exit code, over `timeout` seconds, over `memory`
    bytes), `Killed` or `Cancelled`; then its process tree has ended.
    """
    (out_read, out_write), (err_read, err_write) = _streams()
    pipe = os.readlink(f"/proc/self/fd/{out_write}")
    try:
        leash.hold(pipe)
        try:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out_write, stderr=err_write,
                start_new_session=True, pass_fds=keep,
            )  # fmt: skip
        finally:
            os.close(out_write)
            os.close(err_write)
        leash.hold(pipe, process.pid)
        try:
            _follow(process, pipe, (out_read, err_read), log, cancelled, timeout, memory)
        finally:
            if not end_tree(process.pid, pipe):
                log(f"some of its processes cannot be ended: {tree(process.pid, pipe)}")
            process.wait()
    finally:
        leash.let_go(pipe)
        os.close(out_read)
        os.close(err_read)
    code = process.returncode
    number = -code if code < 0 else code - 128  # a shell says 128 + n, so does the warm interpreter
    if number in set(signal.Signals):
        raise Killed(f"killed by {signal.Signals(number).name}")
    if code:
        raise StageFailed(f"exit code {code}")


def _follow(
    process: "subprocess.Popen[bytes]",
    pipe: str,
    readers: tuple[int, ...],
    log: Callable[[str], None],
    cancelled: threading.Event,
    timeout: float | None,
    memory: int,
) -> None:
    """Pass output on until the command and its output have ended; raise when it must be ended."""
    started = looked = time.monotonic()
    ended: float | None = None
    lines = {descriptor: Lines(log) for descriptor in readers}
    child = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as selector:
            for descriptor in (*readers, child):
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(POLL_SECONDS):
                    if key.fd == child:  # not reaped yet: its number, which names the session, stays its own
                        ended = time.monotonic()
                        selector.unregister(child)
                        continue
                    try:
                        data = os.read(key.fd, 1 << 16)
                    except OSError:  # a terminal's way to say that its other end is closed
                        data = b""
                    lines[key.fd].feed(data)
                    if not data:
                        selector.unregister(key.fd)
                now = time.monotonic()
                if cancelled.is_set():
                    raise Cancelled("cancelled")
                if ended and now - ended > LINGER_SECONDS:
                    return
                if timeout and now - started > timeout:
                    raise StageFailed(f"over its time of {timeout:g} s")
                if memory and now - looked > MEMORY_SECONDS:
                    looked = now
                    used = memory_of(tree(process.pid, pipe), memory)
                    if used > memory:
                        raise StageFailed(
                            f"over its memory: {used / 2**20:.0f} MiB, its meta.memory allows {memory / 2**20:.0f} MiB"
                        )
    finally:
        os.close(child)
        for part in lines.values():
            part.close()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watch(sys.stdin)
