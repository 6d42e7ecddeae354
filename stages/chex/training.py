"""CHEX on images: rows of table T1, their networks, and how these are trained and tested."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.chex.criteria import selection_residuals
from stages.chex.data import CLASSES, SHAPES, ArrayData, FolderData, accuracy, open_data
from stages.chex.loop import Loss, Task
from stages.chex.method.channel_groups import find_channel_groups
from stages.chex.method.learning_rate import warmup_cosine
from stages.chex.method.losses import mixup
from stages.chex.method.resnet import build
from stages.chex.params import ChexParams, DataName, MethodName, Recipe
from stages.chex.rows import Row, Schedule
from stages.chex.study import Job, Numbers, PartSettings, Study
from stages.common.stage.params import load_params

BN_SCALE = 0.5  # the authors start every norm scale at a half (card, "Classification recipe")
OUTPUTS = 100  # test images whose logits are compared
MONITOR_BATCHES = 1  # of the test set, in training
METHODS: dict[MethodName, Row] = {
    "uniform": Row("before training", "l1", "uniform"),
    "random": Row("after training", "random", "uniform"),
    "l1": Row("after training", "l1", "uniform"),
    "bn": Row("after training", "bn"),
    "chex": Row("while training"),
    "chex-prune-once": Row("once"),
    "chex-no-regrow": Row("while training", regrow="none"),
    "chex-random-regrow": Row("while training", regrow="random"),
    "chex-no-realloc": Row("while training", allocation="uniform"),
}


class ImageStudy(Study[DataName]):
    """Classification; its parts are data sets."""

    name, rows = "chex", METHODS

    def __init__(self) -> None:
        params = self.params = load_params(ChexParams, self.name)
        parts = {
            data: PartSettings(
                recipe.steps, params.prune, recipe.model_dump() | params.prune.model_dump(), "T1", data
            )
            for data, recipe in params.data.items()
        }
        super().__init__(params, params.scale, params.seeds, params.methods, parts)

    def network(self, part: DataName, seed: int) -> nn.Module:
        """The untrained network of a seed."""
        torch.manual_seed(seed)
        return build(
            self.params.data[part].net, CLASSES[part], in_channels=SHAPES[part][0], norm_scale=BN_SCALE
        )

    def example(self, part: DataName, batch: int = 1) -> Tensor:
        """An input, zeros."""
        return torch.zeros(batch, *SHAPES[part])

    def data(self, part: DataName, device: torch.device) -> ArrayData | FolderData:
        """The prepared data set."""
        return open_data(self.prepared, part, self.params.data[part], device)

    def task(self, part: DataName, schedule: Schedule, seed: int, device: torch.device) -> Task:
        """Training on the prepared data."""
        return task_of(self.data(part, device), schedule, seed)

    def outputs(self, part: DataName, network: nn.Module, device: torch.device) -> list[Tensor]:
        """Logits of the first test inputs."""
        x_BCHW, _ = next(iter(self.data(part, device).test()))
        return [network(x_BCHW[:OUTPUTS])]

    def quality(self, job: Job[DataName], network: nn.Module, device: torch.device) -> Numbers:
        """Top-1 accuracy; of dense networks also the residuals of the selection criteria."""
        numbers: Numbers = {"top1": (accuracy(network, self.data(job.part, device)), "%")}
        if job.target is None:
            groups, _ = find_channel_groups(network, self.example(job.part).to(device))
            for metric, value in selection_residuals(network, [group.name for group in groups], job.seed):
                numbers[metric] = (value, "relative residual")
        return numbers

    def table(self, part: DataName, metric: str) -> str:
        """T1, or T6 for the selection criteria."""
        return "T6" if " at " in metric else "T1"


def task_of(data: ArrayData | FolderData, schedule: Schedule, seed: int) -> Task:
    """Training on a data set: SGD, warm-up and cosine, mixup and label smoothing."""
    recipe = data.recipe
    peak = recipe.finetune_lr if schedule.finetune else recipe.lr

    def losses(start: int) -> Iterator[Loss]:
        for step, (x_BCHW, y_B) in enumerate(data.train(seed, start), start):
            if recipe.mixup:
                generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
                x_BCHW, y_B = mixup(x_BCHW, y_B, data.classes, recipe.mixup, generator)

            def loss(network: nn.Module, x_BCHW: Tensor = x_BCHW, y_B: Tensor = y_B) -> Tensor:
                return F.cross_entropy(network(x_BCHW), y_B, label_smoothing=recipe.smoothing)

            yield loss

    return Task(
        optimizer=lambda network: sgd(network, recipe, peak),
        lr=lambda step: warmup_cosine(step, 1.0, recipe.warmup, schedule.steps),
        losses=losses,
        bfloat16=recipe.precision == "bfloat16",
        monitor=lambda network: {"top1 in training": accuracy(network, data, MONITOR_BATCHES)},
    )


def sgd(module: nn.Module, recipe: Recipe, lr: float) -> torch.optim.SGD:
    """SGD with momentum; no weight decay on parameters with "bn" in their name, as released (card, recipe)."""
    decayed = [p for name, p in module.named_parameters() if "bn" not in name]
    free = [p for name, p in module.named_parameters() if "bn" in name]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, fused=True)
