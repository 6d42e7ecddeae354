"""Measured times that stay what they are until what was measured, or the machine, changes.

A wall time differs every time it is taken; a report that is written twice must not. So a measurement is kept in
a small JSON file under a key that names what was measured, and taken again only where no such key was
measured on this kind of machine. Delete the file to measure everything anew.
"""

import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from stages.common.stage.files import write_atomic


def machine() -> str:
    """The kind of machine, as far as it bears on a time: processor, torch version."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        parts = [
            fields.get(f"{name}\t", fields.get(name, "")).strip()
            for name in ("model name", "cpu family", "model")
        ]
        cpu = " ".join(part for part in parts if part) or cpu
    return f"{cpu}, torch {torch.__version__}"


class Timings:
    """The measurements in one file."""

    def __init__(self, path: Path) -> None:
        self.machine = machine()
        content = json.loads(path.read_text()) if path.exists() else {}
        self._known: dict[str, list[float]] = (
            content.get("values", {}) if content.get("machine") == self.machine else {}
        )
        self._used: dict[str, list[float]] = {}

    def measure(self, key: str, take: Callable[[], list[float]]) -> list[float]:
        """The numbers known under `key`, or those that `take()` measures now."""
        if key not in self._used:
            self._used[key] = self._known.get(key) or take()
        return self._used[key]

    def save(self, path: Path) -> None:
        """Write the measurements that were asked for."""
        content = {"machine": self.machine, "values": dict(sorted(self._used.items()))}
        write_atomic(path, json.dumps(content, indent=1) + "\n")
