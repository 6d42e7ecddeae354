"""Weights in a file that is whole or absent."""

from pathlib import Path

from safetensors.torch import save
from torch import nn

from stages.common.stage.device import is_main
from stages.common.stage.files import write_atomic


def save_weights(model: nn.Module, path: Path) -> None:
    """Write a model's state dict; of several processes the first one does."""
    if is_main():
        state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        write_atomic(path, save(state))
