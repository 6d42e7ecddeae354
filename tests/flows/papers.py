"""A DVC project that looks like Encore's: two papers with reports, stages that take no time."""

import json
from pathlib import Path
from typing import Any

from tests.flows.project import REPOSITORY, copy, make_project

TABLE = "| method | top-1 % |\n| --- | --- |\n| ours | 91.9 |\n"
CLAIMS = [{"id": "C1", "statement": "it works", "verdict": "supported", "effect": 1.25, "n": 3}]


def make_papers(folder: Path, wait: str = "true") -> Path:
    """Papers `alpha` and `beta`; `wait` is a command that alpha's training runs first."""
    stages: dict[str, Any] = {}
    for paper in ("alpha", "beta"):
        prepared, trained, reports = f"{paper}.data", f"{paper}.model", f"reports/{paper}/quick"
        stages[f"{paper}-prepare"] = copy(paper, ["source.txt"], prepared)
        stages[f"{paper}-train"] = {
            **copy(paper, [prepared], trained, before=wait if paper == "alpha" else "true"),
            "params": [f"{paper}.rate"],
        }
        stages[paper] = {
            "cmd": f"mkdir -p {reports} && cp table.md claims.json {reports}/ && env > {paper}.environment",
            "deps": [trained, "table.md", "claims.json"],
            "outs": [{reports: {"cache": False, "persist": True}}],
        }
    files = {
        "table.md": TABLE,
        "claims.json": json.dumps(CLAIMS),
        "params.yaml": "alpha: {rate: 1, seeds: [0], scale: quick}\nbeta: {rate: 1, seeds: [0], scale: quick}\n",
    }
    make_project(folder, stages, files)
    (folder / "flows").symlink_to(REPOSITORY / "flows")
    return folder
