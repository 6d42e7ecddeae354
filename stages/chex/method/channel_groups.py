"""Which channels of a network must be pruned together, found on its torch.fx graph.

Every convolution or linear layer makes new channels. The analysis follows them through the graph:
element-wise operations, pooling and norms keep them, concatenation lines them up, flatten gives each a block
of positions, an addition or multiplication ties its operands together, a grouped (so also a depthwise)
convolution ties its inputs to its outputs group by group. What it does not understand stops it there: the
channels involved stay dense and are reported by layer and reason.

Residual connections follow the paper (card, "Pruned places"): the residual stream stays dense, the inner
layers of a block are prunable, and so is a projection shortcut beside a bottleneck (a branch that ends in a
1x1 convolution), whose pruned channels simply add nothing to the stream. With `residual="coupled"` the stream
is one prunable group.
"""

import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

Kind = Literal["inner", "shortcut", "coupled"]


class Span(NamedTuple):
    """Where a group lies in one module: unit u takes `block` positions from start + u * block on."""

    module: str
    start: int
    block: int

    def positions(self, units: Tensor) -> Tensor:
        """Positions [n * block] of the given units [n], in order."""
        return (self.start + units[:, None] * self.block + torch.arange(self.block)).reshape(-1)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that live and die together, unit by unit: channel, or group of a grouped convolution.

    Attributes:
        name: its first producer; masks are keyed by it.
        units: number of units.
        kind: "inner" (one producer), "shortcut" (added to a dense stream), "coupled" (several producers).
        producers: rows of the convolutions and linear layers that make the channels.
        norms: entries of the norm layers that they pass.
        depthwise: rows of grouped convolutions that they pass.
        consumers: input columns of the layers that read them.
        exits: for a shortcut, the last module before the addition, after which the full width is needed.
    """

    name: str
    units: int
    kind: Kind
    producers: tuple[Span, ...]
    norms: tuple[Span, ...]
    depthwise: tuple[Span, ...]
    consumers: tuple[Span, ...]
    exits: tuple[str, ...] = ()


def find_channel_groups(
    model: nn.Module, example_input: Tensor, residual: Literal["dense", "coupled"] = "dense"
) -> tuple[list[ChannelGroup], list[tuple[str, str]]]:
    """The prunable channel groups of a network, in network order, and what was left dense for a reason.

    Args:
        model: a convolutional network with one tensor in; not changed (one forward pass in eval mode).
        example_input: [N, C, ...] on the device of the model.
        residual: whether residual streams stay dense (the paper) or form prunable groups of kind "coupled".

    Returns:
        (groups, dense): `dense` holds (layer, reason) for channels that an operation which the analysis does
        not understand kept dense. The network's own input and outputs and, by default, residual streams are
        always dense and not listed.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        >>> groups, dense = find_channel_groups(model, torch.zeros(1, 3, 9, 9))
        >>> [(g.name, g.units) for g in groups], dense
        ([('0', 8)], [])
    """
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:  # whatever user code raises when traced
        return [], [(type(model).__name__, f"its forward cannot be traced by torch.fx: {_first_line(error)}")]
    traced = fx.GraphModule(tracer.root, graph)
    with evaluating(model):
        ShapeProp(traced).propagate(example_input)
    return _Analysis(dict(model.named_modules()), graph, residual).run()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards every module is in the mode it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


class _Tracer(fx.Tracer):
    """Traces what it can; a submodule whose forward torch.fx cannot follow becomes one opaque node."""

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        last = next(iter(reversed(self.graph.nodes)))
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            for node in reversed(list(self.graph.nodes)):  # drop the half-traced submodule
                if node is last:
                    break
                self.graph.erase_node(node)
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)


# ----------------------------------------------------------------------------------------- what is understood

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm)
# element by element or pixel by pixel within a channel; the first set maps a zero channel to a zero channel
_ZERO_TO_ZERO = {
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Identity),
    *(
        nn.Dropout,
        nn.Dropout2d,
        nn.MaxPool1d,
        nn.MaxPool2d,
        nn.MaxPool3d,
        nn.AvgPool1d,
        nn.AvgPool2d,
        nn.AvgPool3d,
    ),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
    *(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.hardswish, F.tanh, F.interpolate),
    *(F.dropout, F.dropout2d, F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d),
    *(torch.relu, torch.relu_, torch.tanh, operator.neg),
    *("relu", "relu_", "tanh", "contiguous", "clone", "float", "half", "bfloat16", "to", "detach"),
}
_ZERO_TO_OTHER = {
    *(nn.Sigmoid, nn.Hardsigmoid, nn.Softplus, F.sigmoid, F.hardsigmoid, F.softplus),
    *(torch.sigmoid, torch.exp, "sigmoid", "exp"),
}
_RESHAPES = {nn.Flatten, torch.flatten, torch.reshape, torch.squeeze, "flatten", "view", "reshape", "squeeze"}
_MEANS = {torch.mean, torch.sum, "mean", "sum"}
_ADDS = {operator.add, operator.iadd, torch.add, operator.sub, torch.sub, "add", "add_", "sub"}
_PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_SHAPE_QUERIES = {"size", "dim", getattr}


@dataclass(eq=False)
class _Channels:
    """Channels made by one layer; union-find over those that must share a mask."""

    size: int
    parent: "_Channels | None" = None
    step: int = 1  # channels per unit
    dense: bool = False
    spans: dict[str, list[Span]] = field(
        default_factory=lambda: {"producers": [], "norms": [], "depthwise": [], "consumers": []}
    )
    exits: list[str] = field(default_factory=list)

    def root(self) -> "_Channels":
        return self if self.parent is None else self.parent.root()

    def tie(self, other: "_Channels") -> None:
        a, b = self.root(), other.root()
        if a is b:
            return
        b.parent = a
        a.step = math.lcm(a.step, b.step)
        a.dense |= b.dense
        a.exits += b.exits
        for role, spans in b.spans.items():
            a.spans[role] += spans


class _Segment(NamedTuple):
    """Consecutive positions of a tensor's channel axis: `block` of them for each channel."""

    channels: _Channels
    block: int


@dataclass
class _Layout:
    """The channel axis of one tensor. `zero`: a masked channel reads zero here."""

    segments: list[_Segment]
    zero: bool = True

    def offsets(self) -> list[tuple[int, _Segment]]:
        starts, start = [], 0
        for segment in self.segments:
            starts.append((start, segment))
            start += segment.channels.size * segment.block
        return starts


class _Stop(Exception):
    """The analysis cannot follow an operation; the message is the reason."""


class _Analysis:
    def __init__(self, modules: dict[str, nn.Module], graph: fx.Graph, residual: str) -> None:
        self.modules, self.graph, self.residual = modules, graph, residual
        self.layouts: dict[fx.Node, _Layout] = {}
        self.made: list[_Channels] = []
        self.reasons: dict[str, str] = {}
        calls = [node.target for node in graph.nodes if node.op == "call_module"]
        self.shared = {target for target in calls if calls.count(target) > 1}

    def run(self) -> tuple[list[ChannelGroup], list[tuple[str, str]]]:
        for node in self.graph.nodes:
            if node.op == "output":
                for source in node.all_input_nodes:
                    self.keep_dense(source)
            elif node.op in ("placeholder", "get_attr"):
                self.opaque(node)
            else:
                try:
                    self.visit(node)
                except _Stop as stop:
                    self.stop(node, str(stop))
        groups = []
        for channels in self.made:
            root = channels.root()
            usable = root.spans["consumers"] or root.exits
            if channels is root and root.spans["producers"] and usable and not root.dense:
                groups.append(self.group(root))
        return groups, list(self.reasons.items())

    def group(self, root: _Channels) -> ChannelGroup:
        order = list(self.modules)
        spans = {
            role: tuple(
                sorted(
                    (s._replace(block=s.block * root.step) for s in found),
                    key=lambda s: order.index(s.module),
                )
            )
            for role, found in root.spans.items()
        }
        kind: Kind = "shortcut" if root.exits else "inner" if len(spans["producers"]) == 1 else "coupled"
        name = spans["producers"][0].module
        return ChannelGroup(name, root.size // root.step, kind, **spans, exits=tuple(root.exits))

    # ------------------------------------------------------------------------------------------ one operation

    def visit(self, node: fx.Node) -> None:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            what: Any = type(module)
            has_state = any(True for _ in module.parameters())
            if has_state and node.target in self.shared:
                raise _Stop("it is called more than once")
            if what in _CONVS or what is nn.Linear:
                return self.weighted(node, module)
            if what in _NORMS:
                return self.norm(node, module)
        else:
            what = node.target
        if what in _SHAPE_QUERIES or shape_of(node) is None:
            return None if what in _SHAPE_QUERIES else self.stop(node, "it does not return one tensor")
        tensors = [source for source in node.all_input_nodes if shape_of(source) is not None]
        if what in _ADDS or what in _PRODUCTS:
            return self.combine(node, tensors, is_sum=what in _ADDS)
        if what is torch.cat and _argument(node, 1, "dim", 0) in (1, 1 - len(shape_of(node) or ())):
            layouts = [self.layouts[source] for source in _argument(node, 0, "tensors", ())]
            zero = all(layout.zero for layout in layouts)
            self.layouts[node] = _Layout([s for layout in layouts for s in layout.segments], zero)
            return None
        if len(tensors) == 1:
            before, after = shape_of(tensors[0]), shape_of(node)
            assert before is not None
            assert after is not None
            layout = self.layouts[tensors[0]]
            same_channels = len(before) > 1 and len(after) > 1 and before[:2] == after[:2]
            if what in _ZERO_TO_ZERO or what in _ZERO_TO_OTHER:
                self.layouts[node] = _Layout(layout.segments, layout.zero and what in _ZERO_TO_ZERO)
                return None
            if what in _RESHAPES and isinstance(_channel_size(node), int) and _channel_size(node) != -1:
                raise _Stop("the number of channels is written into it as a number")
            if what in _RESHAPES and same_channels and math.prod(before) == math.prod(after):
                self.layouts[node] = layout
                return None
            if what in _RESHAPES and after == (before[0], math.prod(before[1:])):
                pixels = math.prod(before[2:])
                segments = [_Segment(s.channels, s.block * pixels) for s in layout.segments]
                self.layouts[node] = _Layout(segments, layout.zero)
                return None
            if what in _MEANS and same_channels and 1 not in _dims(node, len(before)):
                self.layouts[node] = layout
                return None
        raise _Stop("the coupling analysis does not understand it")

    def weighted(self, node: fx.Node, module: nn.Module) -> None:
        """A convolution or linear layer: reads its input's channels, makes its own."""
        name = str(node.target)
        if hasattr(module, "parametrizations"):
            raise _Stop("its weight is parametrized")
        source = node.all_input_nodes[0]
        layout = self.layouts[source]
        if isinstance(module, nn.Linear):
            if len(shape_of(source) or ()) != 2:
                raise _Stop("a linear layer over a channel axis that is not the second of two")
            width, groups = module.out_features, 1
        else:
            assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            width, groups = module.out_channels, module.groups
        if groups > 1:
            assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
            per_in, per_out = module.in_channels // groups, width // groups
            fits = all(s.block == 1 and s.channels.size % per_in == 0 for s in layout.segments)
            if not fits or per_out % per_in:
                raise _Stop(f"its {groups} groups do not line up with the channels that it reads")
            for start, segment in layout.offsets():
                root = segment.channels.root()
                root.step = math.lcm(root.step, per_in)
                root.spans["depthwise"].append(Span(name, start // per_in * per_out, per_out // per_in))
            # rows and bias of a masked unit are zero, so its outputs are, whatever came in
            self.layouts[node] = _Layout([_Segment(s.channels, per_out // per_in) for s in layout.segments])
            return
        for start, segment in layout.offsets():
            segment.channels.root().spans["consumers"].append(Span(name, start, segment.block))
        made = _Channels(width)
        made.spans["producers"].append(Span(name, 0, 1))
        self.made.append(made)
        self.layouts[node] = _Layout([_Segment(made, 1)])

    def norm(self, node: fx.Node, module: nn.Module) -> None:
        layout = self.layouts[node.all_input_nodes[0]]
        if isinstance(module, nn.GroupNorm) and not layout.zero:
            raise _Stop("pruned channels do not read zero here, so its statistics would change")
        for start, segment in layout.offsets():
            segment.channels.root().spans["norms"].append(Span(str(node.target), start, segment.block))
        self.layouts[node] = _Layout(layout.segments, zero=getattr(module, "affine", False) or layout.zero)

    def combine(self, node: fx.Node, tensors: list[fx.Node], is_sum: bool) -> None:
        """Sum or product of tensors (or of a tensor and a number)."""
        layouts = [self.layouts[source] for source in tensors]
        width = (shape_of(node) or (0, 0))[1:2]
        for source in tensors:
            if (shape_of(source) or ())[1:2] != width or len(shape_of(source) or ()) != len(
                shape_of(node) or ()
            ):
                raise _Stop("it broadcasts over channels")
        if len(tensors) < 2:  # with a number
            self.layouts[node] = _Layout(layouts[0].segments, layouts[0].zero and not is_sum)
            return
        a, b = tensors[:2]
        zero = all(x.zero for x in layouts) if is_sum else any(x.zero for x in layouts)
        if is_sum:
            for shortcut, branch in ((a, b), (b, a)):
                start = self.projection(shortcut, branch)
                if start is None:
                    continue
                self.mark_stream(self.layouts[start])
                if self.residual == "dense" and self.ends_pointwise(branch):
                    self.layouts[shortcut].segments[0].channels.exits.append(str(shortcut.target))
                    self.mark_stream(self.layouts[branch])
                    self.layouts[node] = _Layout(self.layouts[branch].segments)
                    return
        if [(s.channels.size, s.block) for s in layouts[0].segments] != [
            (s.channels.size, s.block) for s in layouts[1].segments
        ]:
            raise _Stop("its operands are concatenated differently")
        for left, right in zip(layouts[0].segments, layouts[1].segments, strict=True):
            left.channels.tie(right.channels)
        if is_sum:
            self.mark_stream(layouts[0])
        self.layouts[node] = _Layout(layouts[0].segments, zero)

    # ---------------------------------------------------------------------------------------- residual blocks

    def projection(self, shortcut: fx.Node, branch: fx.Node) -> fx.Node | None:
        """Where the block starts if `shortcut` is its projection: one convolution beside several."""
        conv = shortcut
        if self.module_type(conv) in _NORMS and len(conv.users) == 1:
            conv = conv.all_input_nodes[0]
        if self.module_type(conv) not in _CONVS or len(conv.users) != 1:
            return None
        start, seen, convs = conv.all_input_nodes[0], set[fx.Node](), 0
        queue = [branch]
        while queue:
            at = queue.pop()
            if at in seen or at is start:
                seen.add(at)
                continue
            seen.add(at)
            convs += self.module_type(at) in _CONVS
            queue += [source for source in at.all_input_nodes if source >= start]
        return start if start in seen and convs > 1 else None

    def ends_pointwise(self, branch: fx.Node) -> bool:
        """Whether the branch of a block ends in a 1x1 convolution (and norm): a bottleneck."""
        if self.module_type(branch) in _NORMS:
            branch = branch.all_input_nodes[0]
        conv = self.modules.get(str(branch.target)) if self.module_type(branch) in _CONVS else None
        return isinstance(conv, nn.Conv1d | nn.Conv2d | nn.Conv3d) and math.prod(conv.kernel_size) == 1

    def module_type(self, node: fx.Node) -> Any:
        return type(self.modules[str(node.target)]) if node.op == "call_module" else None

    def mark_stream(self, layout: _Layout) -> None:
        if self.residual == "dense":
            for segment in layout.segments:
                segment.channels.root().dense = True

    # ----------------------------------------------------------------------------------- leaving things dense

    def opaque(self, node: fx.Node) -> None:
        """Channels that nothing is known about: dense."""
        shape = shape_of(node)
        if shape is not None and len(shape) > 1:
            self.layouts[node] = _Layout([_Segment(_Channels(shape[1], dense=True), 1)])
        else:
            self.layouts[node] = _Layout([])

    def keep_dense(self, node: fx.Node) -> list[str]:
        """Keep the channels of a tensor dense; the layers that made them."""
        layers = []
        for segment in self.layouts[node].segments if node in self.layouts else []:
            root = segment.channels.root()
            root.dense = True
            layers += [span.module for span in root.spans["producers"]]
        return layers

    def stop(self, node: fx.Node, reason: str) -> None:
        """Leave everything that goes into `node` dense, and what it makes."""
        target = (
            node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        )
        if node.op == "call_module":
            here = f"{target} ({type(self.modules[str(target)]).__name__})"
            if any(True for _ in self.modules[str(target)].parameters()):
                self.reasons.setdefault(str(target), reason)
        else:
            stack = node.meta.get("nn_module_stack") or {}
            owner = next(reversed(stack.values()))[0] if stack else ""
            here = f"{target} in {owner or 'the model itself'}"
        for source in node.all_input_nodes:
            for layer in self.keep_dense(source):
                self.reasons.setdefault(layer, f"its channels reach {here}: {reason}")
        self.opaque(node)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the tensor that a node returns, None if it returns something else."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _channel_size(node: fx.Node) -> Any:
    """What a view or reshape is told to make of axis 1 (None for other operations)."""
    if node.target not in ("view", "reshape", torch.reshape):
        return None
    sizes = node.args[1:] if len(node.args) > 2 else _argument(node, 1, "shape", ())
    return sizes[1] if isinstance(sizes, list | tuple) and len(sizes) > 1 else None


def _dims(node: fx.Node, rank: int) -> set[int]:
    """Reduced axes of a mean or sum."""
    dim = _argument(node, 1, "dim", None)
    dims = range(rank) if dim is None else dim if isinstance(dim, list | tuple) else [dim]
    return {d % rank for d in dims}
