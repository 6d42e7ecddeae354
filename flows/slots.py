"""What stages share: the machine's CPUs and memory, and its GPUs, each a named slot.

GPUs are named by `ENCORE_GPUS` (such as `0,1`), else by `CUDA_VISIBLE_DEVICES`, else by what `nvidia-smi` lists. A slot is a
locked file in a folder of this user on this machine. The lock belongs to the flow and to the stage's command, so
that two flows never share a GPU, and a slot comes back when both are gone, however they died.
"""

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from flows.plan import Needs


def gpu_names() -> list[str]:
    """The GPUs that may be used on this machine."""
    for variable in ("ENCORE_GPUS", "CUDA_VISIBLE_DEVICES"):
        if variable in os.environ:
            return [name.strip() for name in os.environ[variable].split(",") if name.strip()]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True)
    return listed.stdout.split() if listed.returncode == 0 else []


def slot_folder() -> Path:
    """Where the slots of this machine lie; only this user can enter it."""
    folder = Path(tempfile.gettempdir(), f"encore-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise PermissionError(f"{folder} is not private to this user")
    return folder


def take_gpu(names: list[str], shared: bool = False) -> tuple[str, int] | None:
    """Take one of these GPUs if one is free: its name, and the descriptor that holds it.

    A shared one is shared with others that are taken as shared.
    """
    for name in names:
        file = "".join(c if c.isalnum() or c in "-." else "_" for c in name)
        descriptor = os.open(slot_folder() / f"gpu-{file}.lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        return name, descriptor
    return None


@dataclass
class Reservation:
    """What a running stage has."""

    cpus: int
    memory: int
    gpu: str | None = None  # its name
    slot: int | None = None  # the descriptor that holds it
    hide_gpus: bool = False  # the machine has some, and none is for this stage

    def environment(self) -> dict[str, str]:
        """What tells the stage what it has."""
        visible = {"ENCORE_JOBS": str(self.cpus)}
        if self.gpu is not None:
            visible["CUDA_VISIBLE_DEVICES"] = self.gpu
        elif self.hide_gpus:
            visible["CUDA_VISIBLE_DEVICES"] = ""
        return visible


class Pool:
    """The resources of this machine as far as this flow uses them."""

    def __init__(
        self,
        cpus: int | None = None,
        memory: int | None = None,
        find_gpus: Callable[[], list[str]] = gpu_names,
    ) -> None:
        self.cpus = cpus or len(os.sched_getaffinity(0))
        self.memory = memory or psutil.virtual_memory().total
        self.find_gpus = find_gpus
        self._gpus: list[str] = find_gpus()
        self._free_cpus, self._free_memory = self.cpus, self.memory

    def reserve(self, needs: Needs) -> Reservation | str:
        """Reserve what a stage needs, or say what it waits for.

        A stage that needs more CPUs or memory than the machine has gets the whole machine.
        """
        cpus, memory = min(needs.cpus, self.cpus), min(needs.memory, self.memory)
        if cpus > self._free_cpus:
            return f"{cpus} CPUs"
        if memory > self._free_memory:
            return f"{memory / 2**30:.1f} GiB of memory"
        reservation = Reservation(cpus, memory, hide_gpus=bool(self._gpus))
        if needs.gpu != 0:
            self._gpus = self._gpus or self.find_gpus()  # one may have been added
            if self._gpus:
                taken = take_gpu(self._gpus, needs.gpu == "shared")
                if taken is None:
                    return f"a GPU: all of {', '.join(self._gpus)} are taken"
                reservation.gpu, reservation.slot = taken
            elif needs.gpu != "optional":
                return "a GPU: this machine has none (ENCORE_GPUS=0,1 names them; nvidia-smi lists none)"
        self._free_cpus -= cpus
        self._free_memory -= memory
        return reservation

    def give_back(self, reservation: Reservation) -> None:
        """The stage has ended."""
        self._free_cpus += reservation.cpus
        self._free_memory += reservation.memory
        if reservation.slot is not None:
            with contextlib.suppress(OSError):
                os.close(reservation.slot)
            reservation.slot = None
