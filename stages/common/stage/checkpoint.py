"""Checkpoints: a stage that was killed goes on where it was and ends with the same bytes."""

import io
from pathlib import Path
from typing import Any

import torch

from stages.common.stage.files import write_atomic


class Checkpoint:
    """Training state of one run in one file, written atomically.

    The file belongs to a stage's work folder (`Stage.work`), whose name changes with code, parameters and
    inputs: a checkpoint of other code is never found, so it is never resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None when the run starts from nothing."""
        if not self.path.exists():
            return None
        return torch.load(self.path, map_location="cpu", weights_only=True)

    def save(self, state: dict[str, Any]) -> None:
        """Replace the saved state by `state` (tensors, numbers, strings, lists and dicts of them)."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(self.path, buffer.getvalue())
