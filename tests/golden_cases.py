"""Where the golden cases of a paper lie: `$ENCORE_GOLDEN/<paper>/`, by default `tests/golden/<paper>/`."""

import os
from pathlib import Path


def golden_cases(paper: str, name: str) -> list[Path]:
    """Every file `<name>*.npz` of a paper, sorted (several: more cases of the same kind)."""
    root = Path(os.environ.get("ENCORE_GOLDEN", Path(__file__).parent / "golden"))
    return sorted((root / paper).glob(f"{name}*.npz"))
