"""Print a paper's table and where its report and MLflow data lie: `python -m stages.common.show chex`."""

import os
import sys
from pathlib import Path

import yaml
from rich.console import Console
from rich.markdown import Markdown

from stages.common.stage.params import PARAMS_FILE
from stages.common.sync import LOCAL_STORE


def main() -> None:
    """Show the report of the active scale of the paper named on the command line."""
    paper = sys.argv[1]
    scale = yaml.safe_load(PARAMS_FILE.read_text())[paper]["scale"]
    folder = Path("reports") / paper / scale
    console = Console(width=None if sys.stdout.isatty() else 200)
    for name in ("table.md", "claims.md"):
        console.print(Markdown((folder / name).read_text()))
    store = os.environ.get("MLFLOW_TRACKING_URI") or LOCAL_STORE
    console.print(f"\nreport: {folder}/   all papers: reports/index.html")
    console.print(f"MLflow: {store} (`make serve` opens it on 127.0.0.1:5000)", highlight=False)


if __name__ == "__main__":
    main()
