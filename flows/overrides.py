"""Parameters given on the command line: which combinations of values they ask for."""

import hashlib
import subprocess

from flows.errors import UsageError


def combinations(overrides: list[str]) -> list[list[str]]:
    """Every combination of values: `a=1,2` and `b=3` become [a=1, b=3] and [a=2, b=3]."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import get_hydra_sweeps

    try:
        return [next(iter(sweep.values())) for sweep in get_hydra_sweeps({"params.yaml": overrides})]
    except (DvcException, ValueError, AttributeError) as error:
        raise UsageError(f"-S {' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    except Exception as error:  # Hydra's own errors have no common base
        raise UsageError(f"-S {' '.join(overrides)}: {str(error).splitlines()[0]}") from error


def experiment_name(papers: list[str], overrides: list[str]) -> str:
    """Name of an experiment: the same for the same papers, parameters and commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    digest = hashlib.sha256("\0".join([commit, *papers, *overrides]).encode()).hexdigest()[:6]
    readable = "-".join("".join(c if c.isalnum() else "-" for c in text.split(".")[-1]) for text in overrides)
    return f"{'-'.join(papers)}-{readable}-{digest}"[:100].replace("--", "-")
