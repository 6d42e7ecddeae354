"""Segment your own folder of unlabelled images: `python -m stages.transfgu.segment IMAGES OUTPUT --backbone NAME_OR_FILE`.

The whole method on any images (subfolders too): concepts, pseudo masks, a head trained with restarts. OUTPUT must not
exist; it gets `masks/<path>.png` (palette PNG at the image's own size, pixel value = concept), `annotations.json` (COCO, one
run-length encoded segment per concept and image), `index.html` (gallery of concepts and images), `pseudo_maps.safetensors`,
`head.safetensors` and `concepts.json`. Memory: about 2.5 MB an image at 320 pixels and a ViT-S/8.
"""

import argparse
import base64
import io
import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from stages.common.stage.checkpoint import Checkpoint
from stages.common.stage.device import start_device
from stages.common.stage.errors import InputError, ParameterError
from stages.common.stage.files import output_dir, write_atomic
from stages.common.stage.progress import progress, tick
from stages.common.stage.run import run, seed_everything
from stages.common.stage.tracking import RunLog, run_key
from stages.transfgu.cells import released_backbone
from stages.transfgu.cluster import cluster_windows
from stages.transfgu.data import FileImages, read_image
from stages.transfgu.features import window_size, windows_of
from stages.transfgu.maps import PseudoMaps
from stages.transfgu.method.augment import normalise
from stages.transfgu.method.concept_cam import cam_parts
from stages.transfgu.method.losses import Terms
from stages.transfgu.method.mask_transformer import MaskTransformer
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.method.windows import crop_windows, extract_class_tokens
from stages.transfgu.official import to_official
from stages.transfgu.params import Train, Windows
from stages.transfgu.training import TokenCrops, head_logits, new_head, patch_tokens, total_steps, train_head

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
BATCH, THUMBNAIL, SHOWN_IMAGES = 16, 112, 60
SCALES = [0.5, 0.4, 0.3, 0.2]


@dataclass(frozen=True)
class Result:
    """Concepts as `cluster_windows` gives them, cluster ids `[H, W]` at every image's own size."""

    record: dict[str, object]
    masks: list[np.ndarray]
    names: list[str]


def main() -> None:
    """Segment a folder."""
    options = read_arguments()
    seed_everything(options.seed)
    files = find_images(options.images)
    for file in files:
        read_image(file)  # a damaged file is told before the work, not in the middle of it
    model = released_backbone(options.backbone).to(start_device()).eval().requires_grad_(False)
    side = max(2, options.size // (2 * model.patch)) * 2 * model.patch
    with output_dir(options.output) as output:
        result = segment(model, files, side, options, output)
        write_results(result, files, options.images, output)
    empty = result.record["empty"]
    note = (
        f"; {empty} concepts have no window of their own (fewer distinct windows than concepts)"
        if empty
        else ""
    )
    print(f"{len(files)} images, {len(result.names)} concepts{note}: {options.output / 'index.html'}")


def read_arguments() -> argparse.Namespace:
    """Command-line arguments; a wrong one is told in one line.

    Raises:
        ParameterError: unknown, missing or out of range.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> "None":  # type: ignore[override]
            raise ParameterError(f"{self.prog}: {message}")

    parser = Parser(prog="python -m stages.transfgu.segment", description="Segment unlabelled images.")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("output", type=Path, help="folder to make; must not exist")
    parser.add_argument(
        "--backbone",
        default="timm:vit_small_patch8_224.dino",
        help="DINO file, a backbone of `pretrain`, or timm:NAME",
    )
    parser.add_argument(
        "--things", type=int, default=20, help="concepts (of the foreground, where --stuff is given)"
    )
    parser.add_argument("--stuff", type=int, default=0, help="concepts of the background")
    parser.add_argument(
        "--background", action="store_true", help="things only; pixels of none are background"
    )
    parser.add_argument("--size", type=int, default=320, help="side that images are resized to")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for name, least in (("things", 1), ("stuff", 0), ("size", 1), ("epochs", 1), ("seed", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} = {getattr(options, name)}: must be at least {least}")
    if options.background and options.stuff:
        parser.error("--background is for things only; leave --stuff out")
    if options.output.exists():
        parser.error(f"{options.output}: exists; name a folder that does not")
    if options.output.resolve().is_relative_to(options.images.resolve()):
        parser.error(
            f"{options.output}: lies inside {options.images}; its masks would be images the next time"
        )
    return options


def find_images(folder: Path) -> list[Path]:
    """Image files under a folder, sorted.

    Raises:
        InputError: the folder is missing or has no images.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"{folder}: has no images ({', '.join(sorted(SUFFIXES))})")
    return files


def segment(
    model: VisionTransformer, files: list[Path], side: int, options: argparse.Namespace, output: Path
) -> Result:
    """Concepts, pseudo maps, head, masks."""
    images, size = FileImages([str(file) for file in files], [], None, (side, side)), (side, side)
    foreground = bool(options.background or options.stuff)
    record, centroids_KD = find_concepts(model, images, size, foreground, options)
    tokens = pseudo_label(model, images, size, centroids_KD, output / "pseudo_maps.safetensors")
    maps = PseudoMaps.load(output / "pseudo_maps.safetensors")
    recipe = Train(
        epochs=options.epochs, batch=min(BATCH, len(files)), lr=1e-3, weight_decay=5e-4, start=2, intervals=[2],
        repeat=1, width=model.width, layers=2, heads=max(1, model.width // 64), dropout=0.1, class_init="official",
        augment="tokens",
    )  # fmt: skip
    head = new_head(recipe, len(centroids_KD) + options.background, model.width, options.seed)
    head = head.to(next(model.parameters()).device)
    log = RunLog(
        "transfgu", f"segment {options.images.name}", run_key("segment", str(options.images), options.seed)
    )
    with progress("training", total_steps(recipe, len(files))), log:
        checkpoint = Checkpoint(output / ".head.ckpt")
        train_head(
            head, TokenCrops(tokens, maps), recipe, Terms(), options.background, options.seed, log, checkpoint
        )
        checkpoint.path.unlink(missing_ok=True)
    save_file(to_official(head), output / "head.safetensors")
    names = [f"thing {k}" for k in range(options.things)] + [f"stuff {k}" for k in range(options.stuff)]
    names = ["background", *names] if options.background else names
    return Result(record, predict(head, tokens, files), names)


def find_concepts(
    model: VisionTransformer,
    images: FileImages,
    size: tuple[int, int],
    foreground: bool,
    options: argparse.Namespace,
) -> tuple[dict[str, object], Tensor]:
    """Windows of all images, clustered."""
    device, recipe = (
        next(model.parameters()).device,
        Windows(scales=SCALES, foreground=foreground, size=size[0]),
    )
    tokens, places, kinds = [], [], []
    with progress("windows", len(images)):
        for index in range(len(images)):
            image_CHW = normalise(images.read([index], (2 * size[0], 2 * size[1])).to(device))[0]
            for kind, boxes_W4 in windows_of(model, image_CHW[None], recipe)[0].items():
                if not len(boxes_W4):
                    continue
                crops = crop_windows(image_CHW, boxes_W4, model.patch, window_size(image_CHW, recipe.size))
                tokens.append(extract_class_tokens(model, crops, BATCH).cpu())
                owner = torch.full((len(boxes_W4), 1), index)
                places.append(torch.cat([owner, boxes_W4], 1))
                kinds += [kind] * len(boxes_W4)
            tick()
    counts = {"things": options.things, "stuff": options.stuff} if foreground else {"all": options.things}
    if not foreground or kinds.count("things"):
        bank = torch.cat(tokens).clone(), torch.cat(places), kinds, counts
        centroids_KD, record = cluster_windows(*bank, 5, options.seed, str(options.images))
        cells = 2 * size[0] // model.patch
        record["nearest"] = [[relative(place, cells) for place in places] for places in record["nearest"]]  # type: ignore[attr-defined]
        return record, centroids_KD
    raise InputError(f"{options.images}: no window is mostly foreground; leave --background and --stuff out")


def relative(place: list[int], cells: int) -> list[float]:
    """Image index, and an inclusive box of a grid of `cells` as shares of the image's sides."""
    index, x0, y0, x1, y1 = place
    return [index, x0 / cells, y0 / cells, (x1 + 1) / cells, (y1 + 1) / cells]


def pseudo_label(
    model: VisionTransformer, images: FileImages, size: tuple[int, int], centroids_KD: Tensor, path: Path
) -> Tensor:
    """Writes the concept maps to a file; returns the patch tokens `[N, D, h, w]`."""
    device, tokens = next(model.parameters()).device, []
    maps = PseudoMaps(len(centroids_KD), (size[0] // model.patch, size[1] // model.patch))
    with progress("pseudo masks", len(images)):
        for first in range(0, len(images), BATCH):
            ids = list(range(first, min(first + BATCH, len(images))))
            x_BCHW = normalise(images.read(ids, size).to(device))
            maps.add(cam_parts(model, x_BCHW, centroids_KD), 0.8)
            tokens.append(patch_tokens(model, x_BCHW))
            tick(len(ids))
    maps.save(path)
    return torch.cat(tokens).clone()


@torch.no_grad()
def predict(head: MaskTransformer, tokens_NDhw: Tensor, files: list[Path]) -> list[np.ndarray]:
    """Concept of every pixel, at each image's own size."""
    masks = []
    for file, tokens_Dhw in zip(files, tokens_NDhw, strict=True):
        with Image.open(file) as image:
            width, height = image.size
        logits = head_logits(head, tokens_Dhw[None])[0]
        masks.append(F.interpolate(logits, (height, width), mode="bilinear")[0].argmax(0).cpu().numpy())
    return masks


def palette(count: int) -> np.ndarray:
    """Distinct colours `[count, 3]`: hues at the golden ratio."""
    import colorsys

    colours = [
        colorsys.hsv_to_rgb(k * 0.618 % 1, 0.55 + 0.4 * (k % 3) / 2, 0.95 - 0.3 * (k % 2))
        for k in range(count)
    ]
    return (np.array(colours) * 255).astype(np.uint8)


def write_results(result: Result, files: list[Path], folder: Path, output: Path) -> None:
    """Masks, COCO annotations, concepts and the gallery."""
    from pycocotools import mask as coco

    colours = palette(len(result.names))
    entries: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for index, (file, mask_HW) in enumerate(zip(files, result.masks, strict=True)):
        name = file.relative_to(folder)
        path = output / "masks" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        # beyond 256 concepts a palette has no room: 16-bit grey
        picture = Image.fromarray(mask_HW.astype(np.uint8 if len(colours) <= 256 else np.uint16))
        if len(colours) <= 256:
            picture.putpalette(colours.tobytes())
        picture.save(path)
        height, width = mask_HW.shape
        entries.append({"id": index, "file_name": str(name), "height": height, "width": width})
        for concept in np.unique(mask_HW).tolist():
            rle = coco.encode(np.asfortranarray(mask_HW == concept, dtype=np.uint8))
            box, area = coco.toBbox(rle).tolist(), int(coco.area(rle))
            rle["counts"] = rle["counts"].decode()
            annotations.append(
                {
                    "id": len(annotations), "image_id": index, "category_id": concept, "segmentation": rle,
                    "bbox": box, "area": area, "iscrowd": 0,
                }
            )  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(result.names)]
    content = {"images": entries, "annotations": annotations, "categories": categories}
    write_atomic(output / "annotations.json", json.dumps(content))
    write_atomic(output / "concepts.json", json.dumps(result.record))
    write_atomic(output / "index.html", gallery(result, files, folder, colours))


def gallery(result: Result, files: list[Path], folder: Path, colours: np.ndarray) -> str:
    """One HTML page without scripts or links elsewhere."""
    pixels = np.zeros(len(result.names))
    for mask_HW in result.masks:
        pixels += np.bincount(mask_HW.ravel(), minlength=len(result.names)) / mask_HW.size / len(files)
    windows = list(result.record["nearest"])  # type: ignore[call-overload]
    shift = len(result.names) - len(windows)  # a background has no windows
    parts = []
    for k in np.argsort(-pixels, kind="stable").tolist():
        shown = windows[k - shift] if k >= shift else []
        tiles = "".join(
            _tile(_window(files[index], box), str(files[index].relative_to(folder))) for index, *box in shown
        )
        colour = "#" + bytes(colours[k].tolist()).hex()
        parts.append(
            f'<section><h2><i style="background:{colour}"></i>{result.names[k]} '
            f"<small>{100 * pixels[k]:.1f} % of the pixels</small></h2>{tiles or '<p>no window</p>'}</section>"
        )
    pictures = []
    for file, mask_HW in list(zip(files, result.masks, strict=True))[:SHOWN_IMAGES]:
        image = read_image(file).permute(1, 2, 0).numpy()
        overlay = (0.45 * image + 0.55 * colours[mask_HW]).astype(np.uint8)
        name = str(file.relative_to(folder))
        pictures.append(
            _tile(Image.fromarray(image), name) + _tile(Image.fromarray(overlay), f"{name}, concepts")
        )
    style = (
        "body{font:15px/1.4 system-ui,sans-serif;margin:2rem;max-width:1200px}h2{font-size:1rem}img{margin:2px}"
        "h2 i{display:inline-block;width:1em;height:1em;margin-right:.5em}small{color:#666}"
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Concepts of {escape(folder.name)}</title>'
        f"<style>{style}</style><h1>{len(result.names)} concepts in {len(files)} images of {escape(folder.name)}</h1>"
        "<p>Windows nearest to each concept, then images and their concepts. No label was used; names are numbers.</p>"
        f"{''.join(parts)}<h1>Images</h1>{''.join(pictures)}</html>\n"
    )


def _window(file: Path, box: list[float]) -> Image.Image:
    """A window of an image, its box in shares of the sides."""
    image = Image.fromarray(read_image(file).permute(1, 2, 0).numpy())
    x0, y0, x1, y1 = box
    return image.crop(
        (round(x0 * image.width), round(y0 * image.height), round(x1 * image.width), round(y1 * image.height))
    )


def _tile(image: Image.Image, title: str) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=85)
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{source}" alt="{escape(title)}" title="{escape(title)}" loading="lazy">'


if __name__ == "__main__":
    run(main)
