"""What names a run of this paper (step, row, seed) and what every run starts with."""

from typing import Literal

import torch

from stages.common.stage.tracking import RunLog, run_key
from stages.elsa.data import CLASSES, SIZES
from stages.elsa.method.swin import SwinTransformer
from stages.elsa.params import ElsaParams, Recipe
from stages.elsa.variants import build_network

Step = Literal["pretrain", "finetune"]


def recipe_of(params: ElsaParams, step: Step) -> Recipe:
    """The recipe of a step that the parameters have."""
    recipe = params.pretrain if step == "pretrain" else params.finetune
    assert recipe is not None
    return recipe


def finetuned(params: ElsaParams) -> list[str]:
    """Rows that are fine-tuned: the main row of each mixer, where there is a second data set."""
    return list(params.mixers) if params.finetune else []


def key_of(params: ElsaParams, step: Step, name: str, seed: int) -> str:
    """The run's `run_id` in the results and its tag in MLflow."""
    recipes = [params.pretrain.model_dump(), recipe_of(params, step).model_dump()]
    return run_key("elsa", params.scale, step, name, seed, params.trunk.model_dump(), recipes)


def run_log(params: ElsaParams, step: Step, name: str, seed: int) -> RunLog:
    """The MLflow run of one training."""
    recipe = recipe_of(params, step)
    return RunLog(
        paper="elsa",
        name=f"{step} {name} seed {seed}",
        key=key_of(params, step, name, seed),
        params={
            "step": step, "method": name, "seed": seed, **params.trunk.model_dump(), **recipe.model_dump(),
        },
        tags={"scale": params.scale, "data": recipe.data, "method": name},
    )  # fmt: skip


def network(params: ElsaParams, step: Step, name: str, seed: int, device: torch.device) -> SwinTransformer:
    """The untrained network of a row and seed."""
    recipe = recipe_of(params, step)
    torch.manual_seed(seed)
    model = build_network(name, params.trunk, SIZES[recipe.data], CLASSES[recipe.data], recipe.drop_path)
    return model.to(device)
