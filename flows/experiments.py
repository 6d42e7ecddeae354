"""Other parameters than the workspace's: `-S chex.prune.flops=0.3,0.4` asks for DVC experiments, and a table of them."""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from flows.errors import UsageError


def combinations(overrides: list[str]) -> list[list[str]]:
    """Every combination of values: `a=1,2` and `b=3` become [a=1, b=3] and [a=2, b=3]."""
    from dvc.utils.hydra import get_hydra_sweeps

    try:
        return [next(iter(sweep.values())) for sweep in get_hydra_sweeps({"params.yaml": overrides})]
    except Exception as error:  # Hydra's errors have no common base
        raise UsageError(f"-S {' '.join(overrides)}: {str(error).splitlines()[0]}") from error


def experiment_name(papers: list[str], overrides: list[str], commit: str, changes: bytes) -> str:
    """Name of an experiment: the same for the same papers, parameters, commit, and changes since."""
    identity = "\0".join([commit, *papers, *overrides]).encode() + changes
    digest = hashlib.sha256(identity).hexdigest()[:6]
    readable = "-".join("".join(c if c.isalnum() else "-" for c in text.split(".")[-1]) for text in overrides)
    prefix = "-".join([*papers, readable])[:90]
    return f"{prefix}-{digest}".replace("--", "-")


def comparison(names: dict[str, list[str]], papers: list[str]) -> list[dict[str, Any]]:
    """One row per experiment: its parameters, and the verdicts on the claims of the papers."""
    rows = []
    for name, overrides in names.items():
        row: dict[str, Any] = {"experiment": name} | dict(
            override.lstrip("+").split("=", 1) for override in overrides
        )
        ref = experiment_ref(name) or "HEAD"  # with the workspace's own parameters there is nothing to keep
        for path in _git("ls-tree", "-r", "--name-only", ref, "reports").splitlines():
            parts = Path(path).parts
            if parts[1] in papers and parts[-1] == "claims.json":
                claims = json.loads(_git("show", f"{ref}:{path}"))
                row |= {f"{parts[1]} {claim['id']}": claim["verdict"] for claim in claims}
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return [{column: row.get(column, "") for column in columns} for row in rows]


def experiment_ref(name: str, folder: Path = Path()) -> str:
    """Git's name of an experiment in the repository `folder`, or nothing when there is none of this name."""
    return _experiment(name, folder, "refname")


def experiment_commit(name: str) -> str:
    """The commit of an experiment, or nothing when there is none of this name."""
    return _experiment(name, Path(), "objectname")


def _experiment(name: str, folder: Path, field: str) -> str:
    pattern = f"refs/exps/*/*/{name}"
    found = _git("-C", str(folder), "for-each-ref", pattern, f"--format=%({field})").split()
    return found[0] if found else ""


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True).stdout


def as_markdown(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[column]) for column in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
