"""Write `params.yaml` from the presets that `conf/config.yaml` names: `python -m stages.common.presets [--check]`."""

import argparse
import sys
import tempfile
from pathlib import Path

from dvc.utils.hydra import compose_and_dump

from stages.common.stage.params import PARAMS_FILE


def compose(path: Path) -> None:
    """Compose the presets into `path`, exactly as `dvc exp run -S` does."""
    compose_and_dump(path, str(Path("conf").resolve()), None, "config", None, [])


def main() -> None:
    """Write `params.yaml`, or with `--check` only say whether it is what the presets compose to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        compose(PARAMS_FILE)
        return
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder, PARAMS_FILE)
        compose(expected)
        if expected.read_text() != PARAMS_FILE.read_text():
            sys.exit(f"{PARAMS_FILE} is not what conf/ composes to: run `python -m stages.common.presets`")


if __name__ == "__main__":
    main()
