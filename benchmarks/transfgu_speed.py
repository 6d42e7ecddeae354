"""TransFGU: concept maps, window selection, a training step with a teacher, and what the stores take.

Each line compares this project's form with the plain one, interleaved in one process, median of the runs: closed-form CAM
against a backward pass per concept (through the encoder, as the released code does, and through the last block alone);
integral-image window selection against a mask per window; a step that shares one encoder pass against one that takes two.

    python -m benchmarks.transfgu_speed [--threads 1] [--runs 3] [--size 160]
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.transfgu.maps import PseudoMaps
from stages.transfgu.method.concept_cam import CamParts, cam_parts
from stages.transfgu.method.losses import Terms, segmentation_loss
from stages.transfgu.method.mask_transformer import MaskTransformer, adam
from stages.transfgu.method.vision_transformer import VisionTransformer
from stages.transfgu.method.windows import (
    foreground_shares,
    pixel_boxes,
    select_windows,
    sliding_windows,
)
from stages.transfgu.training import head_logits, patch_tokens


def measure(works: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def cam_lines(model: VisionTransformer, size: int, runs: int) -> None:
    x, centroids = torch.randn(1, 3, size, size), torch.randn(171, model.width)

    def last_block(count: int) -> None:
        tokens, (attention,) = model.forward_features(x, "last")
        for centroid in centroids[:count]:
            loss = -F.cosine_similarity(tokens[:, 0], centroid[None], dim=-1).sum()
            torch.autograd.grad(loss, attention, retain_graph=True)

    print(f"concept maps of one image, ViT-S/8 at {size} x {size}")
    for count, repeats in ((5, runs), (20, runs), (171, 1)):
        works: dict[str, Callable[[], object]] = {
            "closed form": lambda count=count: cam_parts(model, x, centroids[:count])  # type: ignore[misc]
        }
        if count <= 20:  # 171 backward passes take minutes
            works["autograd, encoder"] = lambda count=count: cam_parts(
                model, x, centroids[:count], 8, "autograd"
            )  # type: ignore[misc]
            works["autograd, last block"] = lambda count=count: last_block(count)  # type: ignore[misc]
        found = measure(works, repeats)
        for name, value in found.items():
            print(
                f"  K = {count:3d}  {name:22s} {1e3 * value:9.1f} ms   x {value / found['closed form']:.1f}"
            )


def window_lines(runs: int) -> None:
    patch, boxes, count = 8, sliding_windows(80, 80, (0.5, 0.4, 0.3, 0.2)), 32
    masks = torch.rand(count, 80, 80) > 0.5

    def slices(images: Tensor) -> Tensor:
        """The plain loop: the mask at pixel size, one mean of a slice per window and image."""
        places, shares = pixel_boxes(boxes, patch).tolist(), []
        for mask in images:
            pixels = mask.float().repeat_interleave(patch, 0).repeat_interleave(patch, 1)
            shares.append(torch.stack([pixels[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in places]))
        return torch.stack(shares)

    def window_masks(mask: Tensor) -> Tensor:
        """As the released code does it: a mask of the image's size per window, its corners by `nonzero`."""
        rows, columns = torch.meshgrid(torch.arange(80), torch.arange(80), indexing="ij")
        pixels, shares = F.interpolate(mask[None, None].float(), scale_factor=patch)[0, 0], []
        for x0, y0, x1, y1 in boxes.tolist():
            window = ((rows >= y0) & (rows <= y1) & (columns >= x0) & (columns <= x1)).float()
            places = F.interpolate(window[None, None], scale_factor=patch)[0, 0].nonzero()
            (top, left), (bottom, right) = places.min(0).values.tolist(), places.max(0).values.tolist()
            shares.append(pixels[top:bottom, left:right].mean())
        return torch.stack(shares)

    torch.testing.assert_close(slices(masks[:2]).double(), foreground_shares(boxes, masks[:2], patch))
    found = measure(
        {
            "all images at once": lambda: select_windows(boxes, masks, patch),
            "one image at a time": lambda: [select_windows(boxes, mask[None], patch) for mask in masks],
            "loop over slices": lambda: slices(masks),
            "loop over masks": lambda: window_masks(masks[0]),
        },
        runs,
    )
    found["loop over masks"] *= count  # timed on one image
    print(f"selection among {len(boxes)} windows of {count} images of 640 x 640, per image")
    for name, value in found.items():
        print(f"  {name:22s} {1e3 * value / count:9.3f} ms   x {value / found['all images at once']:.1f}")


def step_lines(model: VisionTransformer, size: int, runs: int) -> None:
    batch, concepts = 4, 27
    head, teacher = (MaskTransformer(concepts, model.width, 384, n_heads=6) for _ in range(2))
    teacher.eval().requires_grad_(False)
    optimizer, images = adam(head, 1e-4, 5e-4), torch.randn(batch, 3, size, size)
    maps, permutation = torch.rand(batch, concepts, size // 8, size // 8), torch.randperm(concepts)

    def step(passes: int, with_teacher: bool) -> None:
        tokens = [patch_tokens(model, images).clone() for _ in range(passes)]
        logits, embeddings = head_logits(head, tokens[0])
        with torch.no_grad():
            other = head_logits(teacher, tokens[-1])[0] if with_teacher else None
        loss, _ = segmentation_loss(logits, embeddings, maps, other, 3, permutation, False, Terms())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    works: dict[str, Callable[[], object]] = {
        "without teacher": lambda: step(1, False),
        "teacher, shared pass": lambda: step(1, True),
        "teacher, own pass": lambda: step(2, True),
    }
    found = measure(works, runs)
    print(f"a training step, batch {batch}, crops of {size} x {size}, {concepts} concepts")
    for name, value in found.items():
        print(f"  {name:22s} {1e3 * value:9.0f} ms   x {value / found['without teacher']:.2f}")


def store_lines() -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        for concepts in (27, 171):
            maps = PseudoMaps(concepts, (40, 40))
            maps.add(CamParts(torch.rand(4, 1600), torch.randn(4, concepts, 1600)), 0.8)
            maps.save(Path(folder) / "maps")
            size, dense = (Path(folder) / "maps").stat().st_size / 4, 4 * concepts * 1600
            print(
                f"pseudo maps, {concepts} concepts: {size / 1024:.0f} KiB an image, float32 {dense / size:.1f} times as much"
            )
    print("feature bank: float16, float32 2.0 times as much")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--size", type=int, default=160)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = VisionTransformer(8, 384, 12, 6, 28).eval()
    window_lines(options.runs)
    store_lines()
    cam_lines(model, options.size, options.runs)
    step_lines(model.requires_grad_(False), options.size, options.runs)


if __name__ == "__main__":
    main()
