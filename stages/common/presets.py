"""Write `params.yaml` from the presets that `conf/config.yaml` names: `python -m stages.common.presets`."""

from pathlib import Path

from dvc.utils.hydra import compose_and_dump

from stages.common.stage.params import PARAMS_FILE


def compose(path: Path) -> None:
    """Compose the presets into `path`, exactly as `dvc exp run -S` does."""
    compose_and_dump(path, str(Path("conf").resolve()), None, "config", None, [])


if __name__ == "__main__":
    compose(PARAMS_FILE)
