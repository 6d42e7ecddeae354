"""The stage that tests all networks of a study and counts what is left of them.

`results.parquet` (tidy) and `widths.parquet` (active channels at every choice of channels, one row per channel group).
"""

import json
from functools import partial

import pandas as pd

from stages.chex.measures import torch_macs
from stages.chex.method.flops import count_macs, count_params
from stages.chex.study import Job, Numbers, Part, Study
from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision
from stages.common.stage.tracking import RunLog


def evaluate(study: Study[Part]) -> None:
    """Evaluate all cells that the parameters name."""
    cells = [(method, seed) for seed in study.seeds for method in ("dense", *study.methods)]
    inputs = [study.prepared, *(study.cell(method, seed) for method, seed in cells)]
    jobs = [job for method, seed in cells for job in study.jobs(method, seed)]
    with Stage(f"{study.name}-evaluate", study.section, inputs):
        first = study.seeds[0]
        dense = {
            part: count_macs(study.network(part, first).get_submodule(of.path), study.example(part))
            for part, of in study.parts.items()
        }
        rows: list[dict[str, object]] = []
        widths: list[dict[str, object]] = []
        revision = git_revision()
        with progress(f"{study.name}-evaluate", len(jobs)) as bar:
            for job, numbers in run_jobs(partial(evaluate_one, study=study, dense_macs=dense), jobs):
                for metric, (value, unit) in numbers.items():
                    rows.append(
                        {
                            "paper": study.name, "table": study.table(job.part, metric), "method": job.method,
                            "setting": job.setting, "metric": metric, "value": value, "unit": unit, "seed": job.seed,
                            "scale": study.scale, "data": study.parts[job.part].data, "run_id": study.key(job),
                            "git_rev": revision,
                        }
                    )  # fmt: skip
                widths += history(job, study)
                bar.advance()
        with output_dir(study.runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")
            order = ["part", "method", "target", "seed", "step"]
            frame = pd.DataFrame(widths).sort_values(order, kind="stable", ignore_index=True)
            write_parquet(frame, output / "widths.parquet")


def evaluate_one(job: Job[Part], study: Study[Part], dense_macs: dict[Part, int]) -> Numbers:
    """The numbers of one network; they are also added to its MLflow run."""
    device = start_device()
    network = study.trained(job, device)
    body, example = network.get_submodule(study.parts[job.part].path), study.example(job.part).to(device)
    macs = count_macs(body, example)
    numbers: Numbers = {
        **study.quality(job, network, device),
        "macs": (macs, "MACs"),
        "macs_fraction": (macs / dense_macs[job.part], "of dense"),
        "torch_macs": (torch_macs(body, example), "MACs"),
        "params": (count_params(network), "count"),
    }
    if job.target is not None:
        record = json.loads(study.file(job).with_suffix(".json").read_text())
        numbers["slim_masked_difference"] = (record["slim_masked_difference"], "max abs")
    with RunLog(study.name, "", study.key(job), kind="amend") as log:
        log.metrics({metric: value for metric, (value, _) in numbers.items()})
        log.artifact(study.file(job))
    return numbers


def history(job: Job[Part], study: Study[Part]) -> list[dict[str, object]]:
    """Active channels of every group at every choice of channels of one network."""
    if job.target is None:
        return []
    record = json.loads(study.file(job).with_suffix(".json").read_text())
    return [
        {**job._asdict(), "step": entry["step"], "group": group, "active": active}
        for entry in record["history"]
        for group, active in entry["active"].items()
    ]
