"""Scenes, and folders laid out like COCO and ADE20K: what is read is what was drawn; what is wrong is told in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.common.dense import coco, semantic
from stages.common.dense.params import DenseData
from stages.common.dense.scene_folders import SEEDS, write_ade_scenes, write_coco_scenes
from stages.common.dense.scenes import CLASSES, SMALLEST, Scene, make_scenes
from stages.common.dense.splits import SPLITS, choose
from stages.common.stage.errors import InputError

SIZE = 48
DATA = DenseData.model_validate(
    {
        "kind": "scenes", "root": None, "train_images": 6, "val_images": 3,
        "scenes": {"size": SIZE, "objects": [1, 3], "look": "bright"},
    }
)  # fmt: skip
ALL: dict[coco.Split, int | None] = {"train": None, "val": None}


def drawn(split: coco.Split) -> list[Scene]:
    count = DATA.train_images if split == "train" else DATA.val_images
    assert count is not None
    return make_scenes(count, SIZE, SEEDS[split], (1, 3), "bright")


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    write_coco_scenes(DATA, tmp_path / "coco")
    return tmp_path / "coco"


@pytest.fixture
def ade_root(tmp_path: Path) -> Path:
    write_ade_scenes(DATA, tmp_path / "ade")
    return tmp_path / "ade"


@settings(max_examples=20, deadline=None)
@given(st.integers(32, 96), st.integers(0, 10**6), st.sampled_from(["wavy", "bright"]))
def test_scenes_are_as_described(size: int, seed: int, look: Any) -> None:
    scenes = make_scenes(3, size, seed, (2, 4), look)
    for scene, again in zip(scenes, make_scenes(3, size, seed, (2, 4), look), strict=True):
        assert np.array_equal(scene.image, again.image)
        assert scene.image.shape == (3, size, size)
        assert 1 <= len(scene.labels) <= 4
        found, counts = np.unique(scene.instances, return_counts=True)
        assert found.tolist() == list(range(len(scene.labels) + 1))  # every object is seen
        assert counts[1:].max() <= (size // 2) ** 2
        for number, label in enumerate(scene.labels, 1):
            assert set(scene.semantic[scene.instances == number]) == {label + 1}
            rows, columns = np.nonzero(scene.instances == number)
            assert (
                max(np.ptp(rows), np.ptp(columns)) + 1 >= SMALLEST - 1
            )  # a triangle's tip may be thinner than a pixel


def test_other_seeds_give_other_scenes() -> None:
    assert not np.array_equal(make_scenes(1, 64, 0)[0].image, make_scenes(1, 64, 1)[0].image)


@pytest.mark.parametrize("split", SPLITS)
def test_coco_folder_gives_back_the_scenes(coco_root: Path, tmp_path: Path, split: coco.Split) -> None:
    coco.list_coco(coco_root, ALL, tmp_path, masks=True)
    # a listing inside its folder moves with it
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    images = coco.open_coco(moved, split, first_label=1, masks=True)
    scenes = drawn(split)
    assert len(images) == len(scenes)
    assert images.categories == {label + 1: label + 1 for label in range(len(CLASSES))}
    for (image, target), scene in zip((images[i] for i in range(len(images))), scenes, strict=True):
        assert np.array_equal((image * 255).round().byte().numpy(), scene.image)
        assert target["labels"].tolist() == [label + 1 for label in scene.labels]
        for number, (box, mask) in enumerate(zip(target["boxes"], target["masks"], strict=True), 1):
            assert np.array_equal(mask.numpy(), scene.instances == number)
            rows, columns = mask.nonzero(as_tuple=True)
            tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert box.tolist() == [int(side) for side in tight]
    truth = images.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))


def test_labels_start_where_a_detector_wants_them(coco_root: Path, tmp_path: Path) -> None:
    coco.list_coco(coco_root, ALL, tmp_path, masks=False)
    zero, one = (coco.open_coco(tmp_path, "train", first, masks=False) for first in (0, 1))
    assert torch.equal(zero[0][1]["labels"] + 1, one[0][1]["labels"])
    assert "masks" not in zero[0][1]
    assert zero.categories[0] == one.categories[1]


def test_crowds_are_no_targets_and_some_images_may_be_chosen(coco_root: Path, tmp_path: Path) -> None:
    path = coco.annotation_file(coco_root, "train")
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    crowded = content["annotations"][0]["image_id"]
    path.write_text(json.dumps(content))
    coco.list_coco(coco_root, {"train": None, "val": 2}, tmp_path, masks=True)
    images = coco.open_coco(tmp_path, "train", 1, masks=True)
    if crowded in images.ids:  # unless nothing but the crowd was in it
        shown = len(images[images.ids.index(crowded)][1]["labels"])
        assert shown == sum(a["image_id"] == crowded for a in content["annotations"]) - 1
    assert len(coco.open_coco(tmp_path, "val", 1, masks=True)) == 2
    kept = {a["image_id"] for a in coco.open_coco(tmp_path, "val", 1, True).ground_truth()["annotations"]}
    assert len(kept) <= 2


def test_choice_is_repeatable_and_in_order() -> None:
    items = list(range(100))
    assert choose(items, 10) == choose(items, 10) == sorted(choose(items, 10))
    assert choose(items, None) == choose(items, 1000) == items


def annotation(change: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["annotations"][1].update(change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("categories"), "no list 'categories'"),
        (lambda content: content["annotations"][2].pop("bbox"), r"annotations\[2\]: no 'bbox'"),
        (lambda content: content["images"][1].update(id=0), r"images\[1\]: id 0: must be a whole number, used once"),
        (annotation({"image_id": 99}), "annotation 2: image_id 99 is none of the images"),
        (annotation({"category_id": 9}), "annotation 2: category_id 9 is none of the categories"),
        (annotation({"bbox": [1, 2, 3]}), r"annotation 2: bbox \[1, 2, 3\]: must be"),
        (annotation({"bbox": [1, 2, -3, 4]}), r"annotation 2: bbox .*: must be"),
        (annotation({"bbox": [1, 2, float("nan"), 4]}), r"annotation 2: bbox .*: must be"),
        (annotation({"bbox": "all of it"}), r"annotation 2: bbox .*: must be"),
        (annotation({"segmentation": [[1, 2, 3, 4]]}), "annotation 2: segmentation: a polygon must be"),
        (annotation({"segmentation": 3}), "annotation 2: segmentation: must be polygons or run lengths"),
        (annotation({"segmentation": {"size": [1, 1], "counts": "0"}}), "annotation 2: segmentation: size"),
        (lambda content: content["annotations"][1].pop("segmentation"), "annotation 2: no segmentation"),
        (lambda content: content["annotations"].clear(), "no images with objects"),
        (lambda content: content["images"][0].update(file_name="gone.png"), "gone.png: not found, though"),
    ],
)  # fmt: skip
def test_wrong_annotations_are_told_in_one_line(
    coco_root: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    path = coco.annotation_file(coco_root, "train")
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as error:
        coco.list_coco(coco_root, ALL, tmp_path, masks=True)
    assert "\n" not in str(error.value)
    assert "instances_train2017.json" in str(error.value)
    assert not (tmp_path / coco.LISTING).exists()


def test_missing_and_damaged_files_of_coco_are_named(coco_root: Path, tmp_path: Path) -> None:
    path = coco.annotation_file(coco_root, "val")
    path.write_text(path.read_text()[:-100])
    with pytest.raises(InputError, match=r"instances_val2017\.json: not JSON"):
        coco.list_coco(coco_root, ALL, tmp_path, masks=True)
    path.unlink()
    with pytest.raises(InputError, match=r"instances_val2017\.json: not found"):
        coco.list_coco(coco_root, ALL, tmp_path, masks=True)


def test_an_unreadable_image_is_named(coco_root: Path, ade_root: Path, tmp_path: Path) -> None:
    coco.list_coco(coco_root, ALL, tmp_path, masks=True)
    semantic.list_ade(ade_root, ALL, tmp_path)
    for folder in (coco.image_folder(coco_root, "val"), semantic.image_folder(ade_root, "val")):
        (folder / "000000.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="image 0: not readable"):
        coco.open_coco(tmp_path, "val", 1, masks=False)[0]
    with pytest.raises(InputError, match=r"000000\.png: not a readable image"):
        semantic.open_ade(tmp_path, "val", len(CLASSES) + 1)[0]


@pytest.mark.parametrize("split", SPLITS)
def test_ade_folder_gives_back_the_scenes(ade_root: Path, tmp_path: Path, split: coco.Split) -> None:
    semantic.list_ade(ade_root, ALL, tmp_path)
    images, scenes = semantic.open_ade(tmp_path, split, len(CLASSES) + 1), drawn(split)
    assert len(images) == len(scenes)
    for (image, target), scene in zip((images[i] for i in range(len(images))), scenes, strict=True):
        assert np.array_equal((image * 255).round().byte().numpy(), scene.image)
        assert np.array_equal(target["semantic"].numpy(), scene.semantic)


def test_zero_in_a_label_map_takes_no_part(ade_root: Path, tmp_path: Path) -> None:
    semantic.list_ade(ade_root, ALL, tmp_path)
    values = np.zeros((SIZE, SIZE), np.uint8)
    values[0] = 3
    Image.fromarray(values).save(semantic.label_folder(ade_root, "val") / "000000.png")
    label = semantic.open_ade(tmp_path, "val", 7)[0][1]["semantic"]
    assert set(label[0].tolist()) == {2}
    assert set(label[1:].flatten().tolist()) == {semantic.IGNORED}


def test_wrong_label_maps_are_told_in_one_line(ade_root: Path, tmp_path: Path) -> None:
    semantic.list_ade(ade_root, ALL, tmp_path)
    path = semantic.label_folder(ade_root, "val") / "000000.png"
    Image.fromarray(np.full((SIZE, SIZE), 200, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"000000\.png: has the value 200; allowed are 0 \.\. 7"):
        semantic.open_ade(tmp_path, "val", 7)[0]
    Image.fromarray(np.zeros((SIZE, SIZE + 1), np.uint8)).save(path)
    with pytest.raises(InputError, match="must be a grey map of the image's size 48 x 48, is 48 x 49"):
        semantic.open_ade(tmp_path, "val", 7)[0]
    path.unlink()
    with pytest.raises(InputError, match=r"000000\.png: not found; every image needs a label map"):
        semantic.list_ade(ade_root, ALL, tmp_path)
    with pytest.raises(InputError, match="training: not a folder of images"):
        semantic.list_ade(tmp_path / "nowhere", ALL, tmp_path)
