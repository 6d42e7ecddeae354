"""What a structure may cost: the limits that every candidate of a search is tested against before it is scored."""

from collections.abc import Callable
from dataclasses import dataclass

from stages.zendet.method.cost import Size, count_flops, count_layers, count_params
from stages.zendet.method.structure import Structure


@dataclass(frozen=True)
class Budget:
    """Limits on FLOPs (official formula, at `size`), parameters, layers and milliseconds; None is no limit.

    `min_flops` and `min_layers` make a control spend its budget: a search that minimises would shrink otherwise.
    `latency_of` says the milliseconds of a structure; it is asked last, being the slowest.
    """

    size: Size
    flops: float | None = None
    params: int | None = None
    layers: int | None = None
    latency: float | None = None
    latency_of: Callable[[Structure], float] | None = None
    min_flops: float = 0.0
    min_layers: int = 0

    def holds(self, structure: Structure) -> bool:
        """Whether all limits hold."""
        return self.violation(structure) is None

    def violation(self, structure: Structure) -> str | None:
        """The first limit that does not hold, in words."""
        layers = count_layers(structure)
        if self.layers is not None and layers > self.layers:
            return f"{layers} layers, at most {self.layers} are allowed"
        if layers < self.min_layers:
            return f"{layers} layers, at least {self.min_layers} are asked for"
        flops = count_flops(structure, self.size)
        if self.flops is not None and flops > self.flops:
            return f"{flops:.4g} FLOPs, at most {self.flops:.4g} are allowed"
        if flops < self.min_flops:
            return f"{flops:.4g} FLOPs, at least {self.min_flops:.4g} are asked for"
        if self.params is not None and (params := count_params(structure)) > self.params:
            return f"{params} parameters, at most {self.params} are allowed"
        if self.latency is not None and self.latency_of is not None:
            latency = self.latency_of(structure)
            if latency > self.latency:
                return f"{latency:.4g} ms, at most {self.latency:.4g} are allowed"
        return None
