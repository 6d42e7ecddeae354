"""Parity with the authors' code: every case of tests/golden/transfgu (its README describes the files)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.transfgu.method.augment import Crops, PseudoLabelAugment
from stages.transfgu.method.concept_cam import cam_parts, carries_mass, concept_cam
from stages.transfgu.method.dino import DINOHead, DINOLoss, teacher_temperature
from stages.transfgu.method.kmeans import kmeans
from stages.transfgu.method.losses import (
    Terms,
    bootstrap_loss,
    class_embedding_loss,
    class_embedding_pairs,
    mix_pseudo_labels,
    negative_weight,
    segmentation_loss,
    uncertainty_loss,
)
from stages.transfgu.method.mask_transformer import MaskTransformer, adam, clamp_gradients
from stages.transfgu.method.metrics import ConfusionMatrix, hungarian_match, segmentation_scores
from stages.transfgu.method.vision_transformer import VisionTransformer, attention_rollout
from stages.transfgu.method.windows import crop_windows, select_windows, sliding_windows
from stages.transfgu.official import backbone_from_official, head_from_official
from tests.golden_cases import golden_cases

Case = dict[str, np.ndarray]


def cases(name: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in golden_cases("transfgu", name)]


def load(path: Path) -> Case:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))


def state(case: Case, prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor(value) for key, value in case.items() if key.startswith(prefix)}


def near(actual: Tensor, expected: np.ndarray, atol: float = 1e-5) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=0, atol=atol)


def encoder_case(path: Path) -> Case:
    """The encoder's weights and images lie in another file of the same folder."""
    return load(path.with_name("vit_features.npz"))


def encoder(case: Case) -> VisionTransformer:
    return backbone_from_official(state(case, "sd/"), int(case["num_heads"]))


@pytest.mark.parametrize("path", cases("vit_features"))
def test_golden_encoder(path: Path) -> None:
    case = load(path)
    model = encoder(case)
    assert model.patch == int(case["patch_size"])
    with torch.no_grad():
        tokens, attentions = model.forward_features(tensor(case["images"]), "all")
        near(tokens, case["tokens"])
        near(model.forward_features(tensor(case["images"])), case["tokens"])
        near(attentions[-1], case["last_attention"])
        grid = case["rollout_cls_to_patches"].shape
        near(attention_rollout(attentions).view(grid), case["rollout_cls_to_patches"])
        other = tensor(case["images_other_size"])
        near(model.forward_features(other), case["tokens_other_size"])
        h, w = (side // model.patch for side in other.shape[-2:])
        near(model.positions(h, w), case["pos_embed_other_size"])


@pytest.mark.parametrize("path", cases("cam_maps"))
@pytest.mark.parametrize("method", ["closed_form", "autograd"])
def test_golden_cam(path: Path, method: str) -> None:
    case, weights = load(path), encoder_case(path)
    model, images, centroids = encoder(weights), tensor(weights["images"]), tensor(case["centroids"])
    batch = len(images)
    parts = cam_parts(model, images, centroids, batch, method)  # type: ignore[arg-type]
    near(parts.gradient_BKn.view(case["grad_mean_heads_cls_row"].shape), case["grad_mean_heads_cls_row"])
    attention = parts.attention_Bn / parts.attention_Bn.amax(-1, keepdim=True)
    near(attention.view(case["attention_normalised"].shape), case["attention_normalised"])
    batched = concept_cam(model, images, centroids, cam_batch_size=batch, method=method)  # type: ignore[arg-type]
    near(batched, case["cam_batched"])
    near(concept_cam(model, images, centroids, cam_batch_size=1, method=method), case["cam_one_by_one"])  # type: ignore[arg-type]
    best = batched.topk(2, 1).values
    clear = (best[:, 0] - best[:, 1]).numpy() > 1e-6
    assert (batched.argmax(1).numpy() == case["cam_argmax"])[clear].all()
    assert carries_mass(tensor(case["binarize_in"]), 0.8).tolist() == case["binarize_keep80"].tolist()


@pytest.mark.parametrize("path", cases("segmenter_eval"))
def test_golden_head(path: Path) -> None:
    case = load(path)
    head = head_from_official(state(case, "sd/"), int(case["num_heads"]))
    with torch.no_grad():
        logits, embeddings = head(tensor(case["patch_tokens"]))
    near(logits.transpose(1, 2), case["mask_logits"])
    near(embeddings, case["class_embeddings"])
    grid = logits.view(case["seg_logits"].shape)
    near(grid, case["seg_logits"])
    size = case["pred_argmax_upsampled"].shape[-2:]
    upsampled = torch.nn.functional.interpolate(grid, size, mode="bilinear")
    best = upsampled.topk(2, 1).values
    clear = (best[:, 0] - best[:, 1]).numpy() > 1e-6
    assert (upsampled.argmax(1).numpy() == case["pred_argmax_upsampled"])[clear].all()


@pytest.mark.parametrize("path", cases("losses"))
@pytest.mark.parametrize(("kind", "background"), [("ts", False), ("th", True)])
def test_golden_losses(path: Path, kind: str, background: bool) -> None:
    case = load(path)
    maps, teacher = tensor(case[f"{kind}_pseudo"]), tensor(case[f"{kind}_teacher_logits"])
    permutation = tensor(case[f"{kind}_perm"])
    logits = tensor(case[f"{kind}_logits"]).requires_grad_()
    _, plain = mix_pseudo_labels(maps, None, background)
    assert plain.tolist() == case[f"{kind}_labels_nobootstrap"].tolist()
    near(bootstrap_loss(logits, plain), case[f"{kind}_cat_nobootstrap"])
    near(uncertainty_loss(logits, maps, background), case[f"{kind}_unc"])
    _, mixed = mix_pseudo_labels(maps, teacher, background)
    assert mixed.tolist() == case[f"{kind}_labels_bootstrap"].tolist()
    for key in case:
        if key.startswith(f"{kind}_cat_epoch"):
            epoch = int(key.rpartition("epoch")[2])
            near(bootstrap_loss(logits, mixed, negative_weight(epoch), permutation), case[key])
    for key in case:
        if key.startswith(f"{kind}_grad_epoch"):
            epoch = int(key.rpartition("epoch")[2])
            category = bootstrap_loss(logits, mixed, negative_weight(epoch), permutation).mean()
            total = category + 0.3 * uncertainty_loss(logits, maps, background).mean()
            assert float(total.detach()) == pytest.approx(float(case[f"{kind}_total_epoch{epoch}"]), abs=1e-5)
            (gradient,) = torch.autograd.grad(total, logits)
            near(gradient, case[key])


@pytest.mark.parametrize("path", cases("losses"))
def test_golden_embedding_loss(path: Path) -> None:
    case = load(path)
    near(class_embedding_pairs(tensor(case["emb"])), case["emb_pairs"])
    assert float(class_embedding_loss(tensor(case["emb"]))) == pytest.approx(
        float(case["emb_loss"]), abs=1e-5
    )


@pytest.mark.parametrize("path", cases("train_steps"))
def test_golden_training_steps(path: Path) -> None:
    case, weights = load(path), encoder_case(path)
    heads = int(weights["num_heads"])
    after = state(case, "after/")
    if all(np.array_equal(case[f"before/{name}"], value.numpy()) for name, value in after.items()):
        pytest.skip(
            "the case is damaged: before/ holds the weights after the steps, so they cannot be replayed"
        )
    model = encoder(weights)
    with torch.no_grad():
        patches = model.forward_features(tensor(case["images"]))[:, 1:]
        teacher = head_from_official(state(case, "teacher/"), heads)
        maps = tensor(case["pseudo"])
        grid = maps.shape[-2:]
        teacher_logits = teacher(patches)[0].unflatten(-1, grid)
    head: MaskTransformer = head_from_official(state(case, "before/"), heads)
    optimizer = adam(head, lr=1e-3, weight_decay=5e-4)
    for expected in case["losses_cat_unc_emb_total"]:
        logits, embeddings = head(patches)
        total, parts = segmentation_loss(
            logits.unflatten(-1, grid),
            embeddings,
            maps,
            teacher_logits,
            5,
            tensor(case["perm"]),
            False,
            Terms(),
        )
        values = [float(value.detach()) for value in (*parts.values(), total)]
        assert values == pytest.approx(expected.tolist(), abs=1e-4)
        optimizer.zero_grad()
        total.backward()
        clamp_gradients(head)
        optimizer.step()
    for name, value in after.items():
        near(head.state_dict()[name], value.numpy(), atol=1e-4)


def plain_losses(
    logits: Tensor, embeddings: Tensor, maps: Tensor, teacher: Tensor, permutation: Tensor
) -> list[Tensor]:
    """Category, uncertainty, embedding and total loss at epoch 5 (negative weight 0.08), written out from the card."""
    low, high = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
    scores = 0.5 * teacher.softmax(1) + 0.5 * (maps - low) / (high - low)
    cross_entropy = torch.nn.functional.cross_entropy
    category = cross_entropy(logits, scores.argmax(1))
    category = category - 0.08 * cross_entropy(logits, scores[:, permutation].argmax(1))
    first, second = logits.softmax(1).topk(2, 1).values.unbind(1)
    uncertainty = (1 - (first - second)).mean()
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    count = unit.shape[1]
    pairs = [1 + (unit[:, i] * unit[:, j]).sum(-1) for i in range(count) for j in range(i + 1, count)]
    embedding = torch.stack(pairs).mean()
    return [category, uncertainty, embedding, category + 0.3 * uncertainty + embedding]


def whole_case(source: Path, target: Path) -> Case:
    """A case of the form of `train_steps.npz` whose `before/` is what three steps start from; random heads."""
    case, weights = load(source), encoder_case(source)
    with torch.no_grad():
        patches = encoder(weights).forward_features(tensor(case["images"]))[:, 1:]
    maps, (classes, width) = tensor(case["pseudo"]), case["before/cls_emb"].shape[1:]
    torch.manual_seed(0)
    heads = [
        MaskTransformer(classes, patches.shape[-1], width, 2, int(weights["num_heads"])) for _ in range(2)
    ]
    head, teacher = (each.eval() for each in heads)
    made = {
        key: value for key, value in case.items() if not key.startswith(("before/", "after/", "teacher/"))
    }
    made |= {f"before/{name}": value.numpy().copy() for name, value in head.state_dict().items()}
    made |= {f"teacher/{name}": value.numpy() for name, value in teacher.state_dict().items()}
    named = list(head.named_parameters())
    decayed = [p for name, p in named if p.ndim > 1 and "bias" not in name]
    others = [p for name, p in named if p.ndim <= 1 or "bias" in name]
    groups = [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}]
    optimizer, rows = torch.optim.Adam(groups, lr=1e-3), []
    for _ in range(3):
        logits, embeddings = head(patches)
        with torch.no_grad():
            told = teacher(patches)[0].unflatten(-1, maps.shape[-2:])
        grid = logits.unflatten(-1, maps.shape[-2:])
        losses = plain_losses(grid, embeddings, maps, told, tensor(case["perm"]))
        rows.append([float(loss.detach()) for loss in losses])
        optimizer.zero_grad()
        losses[-1].backward()
        for _, parameter in named:
            assert parameter.grad is not None
            parameter.grad.clamp_(-1, 1)
        optimizer.step()
    made["losses_cat_unc_emb_total"] = np.array(rows)
    after = [key for key in case if key.startswith("after/")]
    made |= {key: head.state_dict()[key.removeprefix("after/")].numpy() for key in after}
    np.savez(target, **made)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("path", cases("train_steps"))
def test_a_whole_case_of_training_steps_is_replayed(path: Path, tmp_path: Path) -> None:
    target = tmp_path / path.name
    target.with_name("vit_features.npz").write_bytes(path.with_name("vit_features.npz").read_bytes())
    made = whole_case(path, target)
    test_golden_training_steps(target)
    for key in ("before/proj_patch", "after/proj_patch", "losses_cat_unc_emb_total"):
        np.savez(target, **{**made, key: made[key] + 0.01})  # type: ignore[arg-type]
        with pytest.raises(AssertionError):
            test_golden_training_steps(target)


@pytest.mark.parametrize("path", cases("augment"))
def test_golden_augmentation(path: Path) -> None:
    case = load(path)
    names = ("top", "left", "crop_h", "crop_w", "flip")
    crops = Crops(*(tensor(case[name]) for name in names))
    augment, images = PseudoLabelAugment(int(case["patch_size"])), tensor(case["images_0_255"])
    near(augment.images(images, crops), case["image_crops"])
    near(augment.maps(tensor(case["pseudo"]), crops, images.shape), case["pseudo_crops"])
    assert augment.labels(tensor(case["labels"]), crops).tolist() == case["label_crops"].tolist()


@pytest.mark.parametrize("path", cases("metrics"))
def test_golden_metrics(path: Path) -> None:
    case = load(path)
    for key in case:
        if not (key.startswith("hist") and key.removeprefix("hist").isdecimal()):
            continue
        number = key.removeprefix("hist")
        counts = case[key]
        match = hungarian_match(counts)
        best = counts[np.arange(len(counts)), case[f"match{number}"]].sum()
        assert counts[np.arange(len(counts)), match].sum() == best
        scores = segmentation_scores(counts, case[f"match{number}"])
        by_cluster = np.empty_like(scores.iou_C)
        by_cluster[case[f"match{number}"]] = scores.iou_C
        np.testing.assert_allclose(by_cluster, case[f"iou_by_cluster{number}"], atol=1e-5)
        found = (scores.miou, scores.pixel_accuracy, scores.class_accuracy)
        assert found == pytest.approx([float(case[f"{name}{number}"]) for name in ("miou", "acc", "macc")])
    confusion = ConfusionMatrix(*case["gt_pred_hist"].shape)
    confusion.update(tensor(case["gt"]), tensor(case["pred"]))
    assert confusion.counts_CK.tolist() == case["gt_pred_hist"].tolist()


@pytest.mark.parametrize("path", cases("windows"))
def test_golden_windows(path: Path) -> None:
    case = load(path)
    for key in case:
        if key.startswith("boxes_"):
            _, grid, *scales = key.split("_")
            h, w = map(int, grid.split("x"))
            boxes = sliding_windows(h, w, [float(scale) for scale in scales])
            assert boxes.tolist() == case[key].tolist()
    image, mask = tensor(case["image"])[0], tensor(case["fg_mask"])[0]
    patch = image.shape[-1] // mask.shape[-1]
    key = next(k for k in case if k.startswith(f"boxes_{mask.shape[0]}x{mask.shape[1]}_"))
    boxes = tensor(case[key]).long()
    fg, bg = (chosen_BW[0].nonzero()[:, 0] for chosen_BW in select_windows(boxes, mask[None], patch))
    assert (len(fg), len(bg)) == (int(case["n_fg"]), int(case["n_bg"]))
    size = (image.shape[-2] // 2, image.shape[-1] // 2)
    crops = crop_windows(image, boxes[fg], patch, size)
    near(crops[0], case["first_fg_crop"])
    near(crops[-1], case["last_fg_crop"])
    near(crops.mean((2, 3)), case["fg_crop_means"])
    near(crop_windows(image, boxes[bg], patch, size).mean((2, 3)), case["bg_crop_means"])


@pytest.mark.parametrize("path", cases("kmeans"))
def test_golden_kmeans(path: Path) -> None:
    case = load(path)
    result = kmeans(tensor(case["features"]), len(case["faiss_centres"]))
    assert result.inertia <= 1.02 * float(case["inertia_true"])


@pytest.mark.parametrize("path", cases("dino_loss"))
def test_golden_dino(path: Path) -> None:
    case = load(path)
    views, prototypes = int(case["ncrops"]), case["student_out"].shape[1]
    student = tensor(case["student_out"]).requires_grad_()
    loss = DINOLoss(prototypes)
    loss.centre = tensor(case["center_before"])
    temperature = teacher_temperature(0.04, 0.07, int(case["epoch"]), 9)  # 10 epochs, the last one at 0.07
    assert temperature == pytest.approx(float(case["teacher_temp_at_epoch"]))
    teacher = tensor(case["teacher_out"]).view(2, -1, prototypes)
    value = loss(student.view(views, -1, prototypes), teacher, temperature)
    value.backward()
    assert float(value.detach()) == pytest.approx(float(case["loss"]), rel=1e-5)
    assert student.grad is not None
    near(student.grad, case["grad_student"])
    near(loss.centre, case["center_after"])
    weights = state(case, "head/")
    hidden, width = weights["mlp.0.weight"].shape
    head = DINOHead(width, hidden, len(weights["mlp.4.weight"]), prototypes)
    gain = weights.pop("last_layer.weight_g")
    assert (gain == 1).all()  # fixed
    head.load_state_dict({"prototypes.weight": weights.pop("last_layer.weight_v"), **weights})
    near(head(tensor(case["head_in"])), case["head_out"])
