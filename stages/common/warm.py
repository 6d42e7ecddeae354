"""A warm interpreter: importing torch takes longer than many a stage, so stages fork from one that has it.

`python -m stages <paper>.<step>` (`stages.__main__`) asks the warm interpreter of this checkout and environment
to run the stage, and starts one when there is none. It has imported third-party packages only: the project's
own code is read anew by every stage. It ends by itself when it has been idle for a minute. The stage uses the
terminal, folder and environment of the caller, and ends when the caller does, however that happens.

`ENCORE_WARM=0` runs stages in the caller's own process instead; the results are the same.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# third-party modules whose import takes longest, those that torch imports only when they are first needed included
PRELOAD = (
    "torch",
    "torch._dynamo",  # by the first optimizer
    "torch.fx.passes.shape_prop",
    "torch.utils.flop_counter",
    "torchvision",
    "numpy",
    "pandas",
    "scipy.stats",
    "pyarrow.parquet",
    "matplotlib.figure",
    "matplotlib.backends.backend_svg",
    "pydantic",
    "safetensors.torch",
    "rich.progress",
    "psutil",
    "yaml",
    "av",
    "multiprocessing.sharedctypes",
    "concurrent.futures.process",
)
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
IDLE_SECONDS = 60.0
START_SECONDS = 60.0
DIED = 137  # as a process that was killed: whoever retries those may retry this
# what libraries read once, when they are loaded: callers that differ in these get different interpreters
LOAD_TIME = (
    "OMP_",
    "MKL_",
    "OPENBLAS_",
    "KMP_",
    "GOMP_",
    "LD_",
    "PYTHON",
    "CUDA_",
    "TORCH_",
    "NCCL_",
    "GLIBC_",
)


def _address() -> str:
    """Socket of the warm interpreter that fits this caller, in a folder that only this user can enter."""
    folder = Path(tempfile.gettempdir(), f"encore-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not private to this user")
    environment = sorted(item for item in os.environ.items() if item[0].startswith(LOAD_TIME))
    site = [str(path) for path in sys.path if path.endswith("site-packages")]
    changed = [os.stat(path).st_mtime_ns for path in site]
    identity = json.dumps([sys.executable, os.getcwd(), site, changed, environment])
    return str(folder / hashlib.sha256(identity.encode()).hexdigest()[:16])


def run_warm(argv: list[str]) -> int | None:
    """Run the stage `argv[0]` with arguments `argv[1:]` in the warm interpreter.

    Returns its exit code, or None when there can be no warm interpreter here.
    """
    try:
        server = _connect()
    except OSError as error:
        print(f"encore: no warm interpreter ({error}), the stage starts slowly", file=sys.stderr)
        return None
    with server:
        request = json.dumps({"argv": argv, "cwd": os.getcwd(), "env": dict(os.environ), "pid": os.getpid()})
        socket.send_fds(server, [len(request.encode()).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(request.encode())
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: server.sendall(bytes([number])))
        while True:
            reply = server.recv(1)
            if not reply:
                print("encore: the warm interpreter died; ENCORE_WARM=0 runs without it", file=sys.stderr)
                return DIED
            return reply[0]


def _connect() -> socket.socket:
    address = _address()
    deadline = time.monotonic() + START_SECONDS
    starter: subprocess.Popen[bytes] | None = None
    start_again = 0.0
    while True:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            client.connect(address)
            return client
        except (FileNotFoundError, ConnectionRefusedError):
            client.close()
        if time.monotonic() > deadline:
            raise TimeoutError("it did not start")
        # one that finds another still there, such as one about to end, ends itself: then it is tried again
        if time.monotonic() > start_again and (starter is None or starter.poll() is not None):
            start_again = time.monotonic() + 1.0
            starter = subprocess.Popen(
                [sys.executable, "-m", "stages.common.warm", address],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        time.sleep(0.02)


def serve(address: str) -> None:
    """Be the warm interpreter: import, listen, fork a process for every stage that is asked for."""
    lock = os.open(address + ".lock", os.O_CREAT | os.O_RDWR, 0o600)
    import fcntl
    import importlib

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # another one is starting
    for name in PRELOAD:
        importlib.import_module(name)
    importlib.import_module("pydantic").create_model(
        "First"
    )  # it looks for plug-ins in every package installed
    # forked children must not share what the imports left to be collected: it would be copied page by page
    import gc

    gc.freeze()
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(address)
    listener.listen(64)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(wake_read, selectors.EVENT_READ)
    callers: dict[socket.socket, int] = {}
    idle_since = time.monotonic()
    while callers or time.monotonic() - idle_since < IDLE_SECONDS:
        for key, _ in selector.select(timeout=5.0):
            if key.fileobj is listener:
                caller, _ = listener.accept()
                caller.settimeout(START_SECONDS)
                try:
                    request, descriptors = _read_request(caller)
                except (OSError, EOFError, ValueError):
                    caller.close()
                    continue
                open_here = [listener.fileno(), selector.fileno(), wake_read, wake_write, caller.fileno()]
                close = [lock, *open_here, *(other.fileno() for other in callers)]
                callers[caller] = _fork_stage(request, descriptors, close)
                for descriptor in descriptors:
                    os.close(descriptor)
                selector.register(caller, selectors.EVENT_READ)
            elif key.fileobj == wake_read:
                os.read(wake_read, 4096)
                for caller, child in list(callers.items()):
                    done, status = os.waitpid(child, os.WNOHANG)
                    if done:
                        _end_group(child)  # what the stage has started ends with it
                        code = os.waitstatus_to_exitcode(status)
                        with contextlib.suppress(OSError):
                            caller.sendall(bytes([code if code >= 0 else 128 - code]))
                        with contextlib.suppress(
                            KeyError
                        ):  # a caller that is gone is not listened to any more
                            selector.unregister(caller)
                        caller.close()
                        del callers[caller]
                        idle_since = time.monotonic()
            else:
                caller = key.fileobj  # type: ignore[assignment]
                try:
                    message = caller.recv(1)
                except OSError:
                    message = b""
                if message:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(callers[caller], message[0])
                else:  # the caller is gone: so is the stage
                    _end_group(callers[caller])
                    selector.unregister(caller)
    os.unlink(address)


def end_with_parent() -> None:
    """Have this process killed when the one that forked it ends, however that happens."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _read_request(caller: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """What a caller asks for, and its standard input, output and error."""
    head, descriptors, _, _ = socket.recv_fds(caller, 8, 3)
    content = bytearray()
    while len(content) < int.from_bytes(head, "big"):
        part = caller.recv(1 << 16)
        if not part:
            raise EOFError("the caller ended while it was asking")
        content += part
    return json.loads(content), list(descriptors)


def _fork_stage(request: dict[str, Any], descriptors: list[int], close: list[int]) -> int:
    """Fork; the child becomes the stage that is asked for. Returns the child's process id."""
    child = os.fork()
    if child:
        with contextlib.suppress(PermissionError):
            os.setpgid(child, child)
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        end_with_parent()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # whoever started the interpreter may have ignored Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for descriptor in close:
            os.close(descriptor)
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"], ENCORE_CALLER=str(request["pid"]))
        from stages.__main__ import run_here

        code = run_here(request["argv"])
    except BaseException as error:
        import traceback

        traceback.print_exc()
        code = 128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
    os._exit(0)  # at once: until it has ended, no other can start
