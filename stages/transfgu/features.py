"""transfgu-features: class tokens of windows of the training images, per encoder of one seed.

Reads `data/transfgu/<scale>/<seed>/` and `runs/transfgu/<scale>/pretrain/<seed>/`. Writes
`runs/transfgu/<scale>/features/<seed>/<backbone>.parquet`: image, box (x0, y0, x1, y1, inclusive patches of the doubled
image), kind ("things", "stuff" or "all") and token (float16, half the size of the released code's bank).
"""

import io
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from torch import Tensor

from stages.common.stage.device import start_device
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.jobs import run_jobs
from stages.common.stage.params import load_params
from stages.common.stage.progress import progress, tick
from stages.common.stage.run import Stage, cell_arguments, run
from stages.transfgu.cells import pretrained_backbone
from stages.transfgu.data import Images, PreparedData
from stages.transfgu.method.augment import normalise
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.method.windows import crop_windows, extract_class_tokens, select_windows, sliding_windows
from stages.transfgu.params import BackboneName, TransfguParams, Windows

SHARD = 32  # images per row group
KINDS = ("things", "stuff", "all")


def main() -> None:
    """Make the feature banks of one seed."""
    seed = cell_arguments("feature banks of one seed", seed=int).seed
    params = load_params(TransfguParams, "transfgu")
    prepared, runs = Path("data/transfgu") / params.scale / str(seed), Path("runs/transfgu") / params.scale
    pretrained = runs / "pretrain" / str(seed)
    with Stage("transfgu-features", params, [prepared, pretrained], seed) as stage:
        total = len(PreparedData(prepared, params).train) * len(params.backbones)
        work = partial(
            make_bank, params=params, prepared=prepared, pretrained=pretrained, seed=seed, folder=stage.work
        )
        with progress(f"transfgu-features seed {seed}", total) as bar:
            for name, _ in run_jobs(work, params.backbones):
                bar.note(name)
        with output_dir(runs / "features" / str(seed)) as output:
            for name in params.backbones:
                shutil.copy(stage.work / f"{name}.parquet", output)


def make_bank(
    name: BackboneName, params: TransfguParams, prepared: Path, pretrained: Path, seed: int, folder: Path
) -> None:
    """Write one bank, `<name>.parquet` in `folder`."""
    path = folder / f"{name}.parquet"
    if path.exists():
        return
    device = start_device()
    model = pretrained_backbone(name, params, pretrained, seed, device)
    images, size = PreparedData(prepared, params).train, (params.data.height, params.data.width)
    content = io.BytesIO()
    with pyarrow.parquet.ParquetWriter(content, _schema(model.width)) as writer:
        for first in range(0, len(images), SHARD):
            ids = list(range(first, min(first + SHARD, len(images))))
            writer.write_table(
                pa.Table.from_pylist(_rows(model, images, ids, size, params.windows), _schema(model.width))
            )
            tick(len(ids))
    write_atomic(path, content.getvalue())


def _schema(width: int) -> pa.Schema:
    box = [(name, pa.int16()) for name in ("x0", "y0", "x1", "y1")]
    return pa.schema(
        [("image", pa.int32()), *box, ("kind", pa.string()), ("token", pa.list_(pa.float16(), width))]
    )


def _rows(
    model: VisionTransformer, images: Images, ids: list[int], size: tuple[int, int], recipe: Windows
) -> list[dict[str, object]]:
    """Rows of a few images: their windows go through the encoder together."""
    device = next(model.parameters()).device
    boxes, crops, owners = [], [], []
    doubled_BCHW = normalise(images.read(ids, (2 * size[0], 2 * size[1])).to(device))
    for index, image_CHW, found in zip(
        ids, doubled_BCHW, windows_of(model, doubled_BCHW, recipe), strict=True
    ):
        for kind, boxes_W4 in found.items():
            boxes.append(boxes_W4)
            owners += [(index, kind)] * len(boxes_W4)
            crops.append(crop_windows(image_CHW, boxes_W4, model.patch, window_size(image_CHW, recipe.size)))
    tokens_WD = extract_class_tokens(model, torch.cat(crops)).cpu().half().numpy()
    names = ("x0", "y0", "x1", "y1")
    return [
        {"image": image, "kind": kind, "token": token, **dict(zip(names, box, strict=True))}
        for (image, kind), box, token in zip(owners, torch.cat(boxes).tolist(), tokens_WD, strict=True)
    ]


def window_size(image_CHW: Tensor, side: int) -> tuple[int, int]:
    """What windows are resized to: `side` for the shorter side, the image's shape otherwise."""
    height, width = image_CHW.shape[-2:]
    return side * height // min(height, width), side * width // min(height, width)


def windows_of(model: VisionTransformer, doubled_BCHW: Tensor, recipe: Windows) -> list[dict[str, Tensor]]:
    """Boxes of each doubled image by kind; things and stuff are told apart by the class token's attention."""
    h, w = doubled_BCHW.shape[-2] // model.patch, doubled_BCHW.shape[-1] // model.patch
    boxes_W4 = sliding_windows(h, w, recipe.scales)
    if not recipe.foreground:
        return [{"all": boxes_W4}] * len(doubled_BCHW)
    # one image at a time: doubled images are large
    foreground_Bhw = torch.stack([foreground(model, image_CHW) for image_CHW in doubled_BCHW]).cpu()
    return [
        {"things": boxes_W4[things_W], "stuff": boxes_W4[stuff_W]}
        for things_W, stuff_W in zip(*select_windows(boxes_W4, foreground_Bhw, model.patch), strict=True)
    ]


@torch.inference_mode()
def foreground(model: VisionTransformer, image_CHW: Tensor) -> Tensor:
    """Patches `[h, w]` that the class token attends to more than to the mean patch, in the last block."""
    h, w = image_CHW.shape[-2] // model.patch, image_CHW.shape[-1] // model.patch
    attention_n = model.class_attention(image_CHW[None])[0]
    return (attention_n > attention_n.mean()).view(h, w)


def read_bank(path: Path) -> tuple[Tensor, Tensor, np.ndarray]:
    """Tokens `[W, D]` float32, places `[W, 5]` (image, box) and kinds `[W]` of a bank."""
    table = pyarrow.parquet.read_table(path)
    tokens = table["token"].combine_chunks()
    flat = tokens.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    places = np.stack([table[name].to_numpy() for name in ("image", "x0", "y0", "x1", "y1")], 1).astype(
        np.int64
    )
    return (
        torch.from_numpy(flat.reshape(len(table), -1)),
        torch.from_numpy(places),
        table["kind"].to_numpy(zero_copy_only=False),
    )


if __name__ == "__main__":
    run(main)
