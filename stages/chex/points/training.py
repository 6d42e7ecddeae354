"""CHEX on point clouds: rows of table T4, their networks, and how these are trained and tested."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.chex.loop import Loss, Task
from stages.chex.method.learning_rate import warmup_cosine
from stages.chex.points.data import EVALUATION_BATCH, PointData, accuracies, class_names
from stages.chex.points.params import CloudsName, MethodName, PointsParams
from stages.chex.points.pointnet import PointNet
from stages.chex.rows import Row, Schedule
from stages.chex.study import Job, Numbers, PartSettings, Study
from stages.common.stage.params import load_params

METHODS: dict[MethodName, Row] = {
    "uniform": Row("before training", "l1", "uniform"),
    "l1": Row("after training", "l1", "uniform"),
    "bn": Row("after training", "bn"),
    "chex": Row("while training", wide="leverage"),
    "chex-no-regrow": Row("while training", wide="leverage", regrow="none"),
    "chex-no-realloc": Row("while training", wide="leverage", allocation="uniform"),
    "chex-wide-l1": Row("while training", wide="l1"),
}


class CloudStudy(Study[CloudsName]):
    """Classification of clouds; its one part is the data set."""

    name, rows = "chex-points", METHODS

    def __init__(self) -> None:
        params = self.params = load_params(PointsParams, self.name)
        sections = (params.data, params.net, params.recipe, params.prune)
        settings = {key: value for section in sections for key, value in section.model_dump().items()}
        data = params.data.name
        parts = {data: PartSettings(params.recipe.steps, params.prune, settings, "T4", data)}
        super().__init__(params, params.scale, params.seeds, params.methods, parts)

    def network(self, part: CloudsName, seed: int) -> nn.Module:
        """The untrained network of a seed."""
        torch.manual_seed(seed)
        net, classes = self.params.net, len(class_names(self.prepared))
        return PointNet(classes, net.shared, net.hidden, net.dropout, net.transform, net.norm_scale)

    def example(self, part: CloudsName, batch: int = 1) -> Tensor:
        """An input, zeros."""
        return torch.zeros(batch, 3, self.params.data.points)

    def data(self, device: torch.device) -> PointData:
        """The prepared clouds."""
        return PointData(self.prepared, self.params.recipe, device)

    def task(self, part: CloudsName, schedule: Schedule, seed: int, device: torch.device) -> Task:
        """Training on the prepared data."""
        return task_of(self.data(device), schedule, seed)

    def outputs(self, part: CloudsName, network: nn.Module, device: torch.device) -> list[Tensor]:
        """Logits of the first test inputs."""
        return [network(self.data(device).test_x[:EVALUATION_BATCH])]

    def quality(self, job: Job[CloudsName], network: nn.Module, device: torch.device) -> Numbers:
        """Accuracy over clouds and over classes."""
        accuracy, class_accuracy = accuracies(network, self.data(device))
        return {"accuracy": (accuracy, "%"), "class_accuracy": (class_accuracy, "%")}


def task_of(data: PointData, schedule: Schedule, seed: int) -> Task:
    """Training on a data set: AdamW and a cosine."""
    recipe = data.recipe
    peak = recipe.finetune_lr if schedule.finetune else recipe.lr

    def losses(start: int) -> Iterator[Loss]:
        for step, (x_B3P, y_B) in enumerate(data.train(seed, start), start):
            torch.manual_seed(seed * 1_000_003 + step)  # dropout

            def loss(network: nn.Module, x_B3P: Tensor = x_B3P, y_B: Tensor = y_B) -> Tensor:
                return F.cross_entropy(network(x_B3P), y_B)

            yield loss

    def adamw(network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), lr=peak, weight_decay=recipe.weight_decay, fused=True)

    return Task(adamw, lambda step: warmup_cosine(step, 1.0, 0, schedule.steps), losses)
