"""A paper's tables and claims as Prefect artifacts, with a link to its runs in MLflow."""

import json
import os
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from flows.plan import Step

TABLE_CELL = 300  # characters; the whole text is in claims.md


def report_folders(step: Step) -> list[Path]:
    """The folders that a paper's last stage makes."""
    return [path for out in step.stage.outs if (path := Path(out.fs_path)).is_dir()]


def mlflow_link(paper: str, execution: str) -> str:
    """Where the runs of this execution are in MLflow, in Markdown."""
    where = f'tags."encore.execution" = "{paper}/{execution}"'
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not server.startswith("http"):
        return f"MLflow: experiment `{paper}`, `{where}`"
    query = urllib.parse.urlencode({"searchFilter": where})
    return (
        f"[MLflow runs of this execution]({server}/#/experiments/{_experiment(server, paper)}/runs?{query})"
    )


def _experiment(server: str, paper: str) -> str:
    query = urllib.parse.urlencode({"experiment_name": paper})
    try:
        with urllib.request.urlopen(
            f"{server}/api/2.0/mlflow/experiments/get-by-name?{query}", timeout=2
        ) as reply:
            return str(json.load(reply)["experiment"]["experiment_id"])
    except (OSError, ValueError, KeyError):  # nothing of it has been sent yet
        return ""


def claims_table(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims as rows of short cells."""
    rows: list[dict[str, Any]] = []
    for claim in claims:
        keys = [
            key for key in ("id", "verdict", "statement", "effect", "interval", "n", "scale") if key in claim
        ]
        rows.append({key: _cell(claim[key]) for key in keys})
    return rows


def _cell(value: Any) -> Any:
    if isinstance(value, (int, bool)) or value is None:
        return value
    if isinstance(value, float):
        return round(value, 6)
    return (value if isinstance(value, str) else json.dumps(value))[:TABLE_CELL]


def publish(step: Step, execution: str) -> None:
    """Make the artifacts of a paper whose report is up to date; to be called inside a flow run."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    paper = step.name
    for folder in report_folders(step):
        tables = [*sorted(folder.glob("table*.md")), *folder.glob("claims.md")]
        scale = folder.name
        if tables:
            text = "\n\n".join([mlflow_link(paper, execution), *(path.read_text() for path in tables)])
            create_markdown_artifact(
                key=_key(paper, scale, "tables"), markdown=text, description=f"{paper}, scale {scale}"
            )
        claims = folder / "claims.json"
        if claims.is_file():
            create_table_artifact(
                key=_key(paper, scale, "claims"),
                table=claims_table(json.loads(claims.read_text())),
                description=f"The claims of {paper}, scale {scale}",
            )


def _key(*parts: str) -> str:
    """Prefect takes lower-case letters, digits and dashes."""
    return "-".join("".join(c if c.isalnum() else "-" for c in part.lower()) for part in parts)
