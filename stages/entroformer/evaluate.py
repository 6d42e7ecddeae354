"""entroformer-evaluate: rates of every entropy model, and real files of every codec.

Reads `data/entroformer/<scale>/` and `runs/entroformer/<scale>/train/`. Writes
`runs/entroformer/<scale>/evaluate/results.parquet` (tidy):
table "rates": estimated bits per pixel of the fixed latents on held-out crops, per method; the serial context also at
other k; table "files": per codec real and estimated bits per pixel, PSNR, MS-SSIM, and whether decoding gave back the
latents and the encoder's own picture, over all held-out pictures; table "anchors": the same of Pillow's codecs.
"""

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.common.results import results_frame, write_parquet
from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress
from stages.common.stage.run import Stage, git_revision, run
from stages.common.stage.tracking import RunLog, run_key
from stages.entroformer.anchors import ANCHORS, anchor
from stages.entroformer.cells import Job, jobs_of, key_of, load_model
from stages.entroformer.data import held_out_crops, held_out_pictures
from stages.entroformer.file_format import HEADER, FileCodec, latents_crc
from stages.entroformer.images import Picture, pad, to_tensor
from stages.entroformer.method.codec import ImageCodec
from stages.entroformer.method.context import SerialContext
from stages.entroformer.method.metrics import ms_ssim, psnr
from stages.entroformer.params import EntroformerParams, Family

Cell = tuple[Family, int]
Row = dict[str, Any]
BATCH = 32
UNITS = {"PSNR": "dB", "MS-SSIM": "1"}
SWEPT = "ent-context"  # whose k at inference is varied
OVERHEAD = 1.005, 32  # real bytes are at most so many times the estimate plus so many (card, claim 5)


def main() -> None:
    """Evaluate all cells that the parameters name."""
    params = load_params(EntroformerParams, "entroformer")
    prepared, runs = Path("data/entroformer") / params.scale, Path("runs/entroformer") / params.scale
    cells: list[Cell] = [(family, seed) for seed in params.seeds for family in params.families]
    inputs = [prepared, *(runs / "train" / f"{family}-{seed}" for family, seed in cells)]
    work: list[tuple[Job, int, Path]] = [
        (job, seed, runs / "train" / f"{family}-{seed}" / f"{job.name}.safetensors")
        for family, seed in cells
        for job in jobs_of(family, params)
    ]
    with Stage("entroformer-evaluate", params, inputs):
        rows: list[Row] = []
        settings = list(product(ANCHORS, params.qualities))
        with progress("entroformer-evaluate", len(work) + len(settings)) as bar:
            for _, numbers in run_jobs(partial(evaluate, params=params, prepared=prepared), work):
                rows += numbers
                bar.advance()
            for _, numbers in run_jobs(partial(anchor_rows, params=params, prepared=prepared), settings):
                rows += numbers
                bar.advance()
        with output_dir(runs / "evaluate") as output:
            write_parquet(results_frame(rows), output / "results.parquet")


def evaluate(task: tuple[Job, int, Path], params: EntroformerParams, prepared: Path) -> list[Row]:
    """Rows of one trained codec; its numbers are also added to its MLflow run."""
    job, seed, path = task
    codec = load_model(path)
    if codec.spec.transform == "dct":
        table, numbers = "rates", rates(codec, prepared, params.topk_sweep if job.method == SWEPT else [])
    else:
        table, numbers = "files", files(codec, held_out_pictures(prepared))
    with RunLog("entroformer", "", key_of(params, job, seed), kind="amend") as log:
        log.metrics({name.replace("=", " "): value for name, value in numbers.items()})
        log.artifact(path)
    return [
        tidy(params, table, job.method, job.setting, name, value, seed, key_of(params, job, seed))
        for name, value in numbers.items()
    ]


@torch.no_grad()
def rates(codec: ImageCodec, prepared: Path, sweep: list[int]) -> dict[str, float]:
    """Estimated bits per pixel on held-out crops, at the trained k and at others; parameters of the entropy model."""
    device = start_device()
    crops, codec = held_out_crops(prepared), codec.to(device)

    def bpp() -> float:
        bits = 0.0
        for x in crops.split(BATCH):
            bits += float(codec.entropy(*codec.latents(x.to(device))).bits())
        return bits / (crops.shape[0] * crops.shape[2] * crops.shape[3])

    numbers = {"bpp": bpp(), "parameters": float(sum(p.numel() for p in codec.entropy.parameters()))}
    context = codec.entropy.context
    for k in sweep:
        assert isinstance(context, SerialContext)
        context.stack.spec = replace(context.stack.spec, topk=k)
        numbers[f"bpp, k={k} at inference"] = bpp()
    return numbers


def files(codec: ImageCodec, pictures: dict[str, torch.Tensor]) -> dict[str, float]:
    """Encode and decode every picture to real bytes."""
    file_codec = FileCodec(codec)
    total: dict[str, list[float]] = {}
    bytes_total = estimate_total = pixels = 0.0
    for value in pictures.values():
        picture = Picture(value.permute(1, 2, 0).contiguous().numpy())
        height, width = picture.rgb.shape[:2]
        encoded = file_codec.encode(picture)
        decoded = file_codec.decode(encoded.content)
        with torch.no_grad():
            y, z = codec.latents(pad(to_tensor(picture.rgb), codec.spec.multiple))
            estimate = float(codec.entropy(y, z).bits()) / 8
            again = file_codec.coder.decode(encoded.content[HEADER.size :], *y.shape[2:])
        original, out = value[None].double(), torch.from_numpy(decoded.rgb).permute(2, 0, 1)[None].double()
        factor, slack = OVERHEAD
        numbers = {
            "PSNR": psnr(original, out),
            "MS-SSIM": float(ms_ssim(original, out)),
            "latents exact": float(latents_crc(*again) == latents_crc(y, z)),
            "picture exact": float((decoded.rgb == encoded.picture.rgb).all()),
            "size within bound": float(len(encoded.content) <= np.ceil(estimate) * factor + slack),
        }
        for name, number in numbers.items():
            total.setdefault(name, []).append(number)
        bytes_total, estimate_total, pixels = (
            bytes_total + len(encoded.content),
            estimate_total + estimate,
            pixels + height * width,
        )
    return {name: float(np.mean(values)) for name, values in total.items()} | {
        "bpp": 8 * bytes_total / pixels,
        "bpp, estimated": 8 * estimate_total / pixels,
        "size over estimate": 100 * (bytes_total / estimate_total - 1),
    }


def anchor_rows(setting: tuple[str, int], params: EntroformerParams, prepared: Path) -> list[Row]:
    """Rate and distortion of one of Pillow's codecs on the held-out pictures, at one quality."""
    name, quality = setting
    size = pixels = 0
    distortions = []
    for value in held_out_pictures(prepared).values():
        count, out = anchor(name, value.permute(1, 2, 0).contiguous().numpy(), quality)
        size, pixels = size + count, pixels + value.shape[1] * value.shape[2]
        decoded = torch.from_numpy(out.copy()).permute(2, 0, 1)[None]
        distortions.append((psnr(value[None], decoded), float(ms_ssim(value[None], decoded))))
    mean_psnr, mean_ssim = np.mean(distortions, 0)
    numbers = {"bpp": 8 * size / pixels, "PSNR": mean_psnr, "MS-SSIM": mean_ssim}
    key = run_key("entroformer", params.scale, name, quality)
    return [tidy(params, "anchors", name, f"quality {quality}", n, v, 0, key) for n, v in numbers.items()]


def tidy(
    params: EntroformerParams,
    table: str,
    method: str,
    setting: str,
    metric: str,
    value: float,
    seed: int,
    key: str,
) -> Row:
    """One row of the results."""
    data = params.data.source if params.data.source == "dead-leaves" else "kodak"
    unit = UNITS.get(
        metric, "bit/pixel" if metric.startswith("bpp") else "%" if metric == "size over estimate" else "1"
    )
    return {
        "paper": "entroformer", "table": table, "method": method, "setting": setting, "metric": metric,
        "value": float(value), "unit": unit, "seed": seed, "scale": params.scale, "data": data, "run_id": key,
        "git_rev": git_revision(),
    }  # fmt: skip


if __name__ == "__main__":
    run(main)
