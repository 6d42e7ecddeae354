"""Parameters of the MotionRGBD pipeline (`conf/motionrgbd/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.stage.params import Scale, Section, Seeds, distinct
from stages.motionrgbd.method.distillation import Reduction

Modality = Literal["rgb", "depth"]
MODALITIES: tuple[Modality, ...] = ("rgb", "depth")
DataName = Literal["generated", "nvgesture", "isogd", "frames"]
UnimodalRow = Literal[
    "full", "no-rcm", "no-distillation", "no-frp", "random-map", "no-sharpness", "single-loss", "all-neighbours",
    "branch-1", "branch-2", "branch-3", "frames-half", "frames-first", "frames-last", "dsn-mean", "dsn-lstm", "3d-cnn",
    "dtn", "dtn-rcm", "dtn-rcm-distillation", "half-window", "double-window", "rho-0.5", "half-tau", "double-tau",
    "half-depth", "double-depth",
]  # fmt: skip
FusionRow = Literal["capf", "concat", "no-spatial", "no-temporal", "no-auxiliary"]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]


class Data(Section):
    """The clips: card, "Data". Sizes in pixels."""

    name: DataName
    root: str | None  # has the data set's own layout; null where generated
    train_list: str  # text files in `root`; not read where generated
    test_list: str
    classes: Count
    frames: Count  # T, of every clip
    side: Count  # of the network's input
    resize: Pair  # height, width that frames are read at, before the crop to `side`
    window: Count  # w of the guidance maps
    depth_colour: Literal["jet", "gray"]  # how one channel of depth becomes three
    flip: Share
    rotation: Annotated[
        list[NonNegative], Field(min_length=2, max_length=2)
    ]  # probability, largest angle in degrees
    shift: Whole  # generated clips are rolled by up to so many pixels
    train: Whole  # generated clips of a class
    test: Whole
    on_bad: Literal["skip", "refuse"]  # a file that cannot be used
    expect_fps: Positive | None  # another frame rate makes a file unusable; null takes any
    one_size: bool  # a file of another size than most of its modality is unusable
    min_frames: Count  # shorter clips are left out, of the test set too, and counted
    workers: Count  # threads that read videos


class Network(Section):
    """The unimodal network: card, "Method"."""

    spatial: Literal["plain", "inception"]
    widths: list[Count]  # of the plain network
    strides: list[Count]
    strict_spatial: bool  # inception's pool does not look at the neighbouring frames
    dim: Annotated[int, Field(ge=64, multiple_of=64)]
    frames: Annotated[list[Count], Field(min_length=3, max_length=3)]  # of the branches
    depth: Count
    heads: Count
    head_dim: Count
    hidden: Count
    rho: Annotated[float, Field(gt=0, le=1)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    position_std: Positive
    bn_momentum: Annotated[float, Field(gt=0, le=1)]  # of DSN and DTN
    rcm_hidden: Count
    rcm_gain: Positive


class Recipe(Section):
    """A training: card, "Unimodal loss" and "CAPF"."""

    epochs: Count
    batch: Annotated[int, Field(ge=2)]  # batch norm needs two clips
    optimizer: Literal["adamw", "sgd"]
    lr: Positive
    min_lr: NonNegative
    warmup: Count
    official_warmup: bool  # leaves the warm-up at about half the rate, as the released unimodal loop does
    momentum: Share
    weight_decay: NonNegative
    clip: Positive  # norm of the gradient
    smoothing: Share
    tau: Positive
    reduction: Reduction


class Sharpness(Section):
    """The temperature that scores are divided by."""

    start: Positive
    end: Positive
    ramp: Count


class Pretrain(Section):
    """Unimodal trainings."""

    recipe: Recipe
    sharpness: Sharpness
    released: str | None  # a released checkpoint whose weights training starts from, where they fit


class Ablation(Section):
    """Rows that change one thing, on one modality and fewer clips."""

    modality: Modality
    per_class: Whole  # training clips of a class; 0 takes all
    rows: Annotated[list[UnimodalRow], AfterValidator(distinct)]


class MotionrgbdParams(Section):
    """The section `motionrgbd` of params.yaml."""

    scale: Scale
    launch: Literal["python"]
    seeds: Seeds
    methods: Annotated[list[Literal["full", "ablation"]], Field(min_length=1), AfterValidator(distinct)]
    fusions: Annotated[list[Literal["fusion", "interaction"]], Field(min_length=1), AfterValidator(distinct)]
    data: Data
    network: Network
    pretrain: Pretrain
    ablation: Ablation
    finetune: Recipe

    @model_validator(mode="after")
    def _consistent(self) -> "MotionrgbdParams":
        data, network = self.data, self.network
        if "full" not in self.methods:
            raise ValueError("methods: 'full' must be among them: the fusions start from it")
        if data.name == "generated" and 0 in (data.train, data.test):
            raise ValueError("data: generated clips; train and test say how many of a class")
        if data.name != "generated" and data.root is None:
            raise ValueError(f"data.root: give the folder of {data.name}")
        if max(network.frames) > data.frames:
            raise ValueError(f"network.frames: a clip has {data.frames} frames")
        if len(network.widths) != len(network.strides):
            raise ValueError("network.strides: one for each of network.widths")
        if min(data.resize) < data.side:
            raise ValueError("data.resize: must not be smaller than data.side")
        return self
