"""Parameters of the TransFGU pipeline (`conf/transfgu/*.yaml`)."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.common.stage.params import Fraction, Scale, Section, Seeds, distinct
from stages.transfgu.method.mask_transformer import ClassInit
from stages.transfgu.method.restarts import RestartSchedule

DataName = Literal[
    "partscenes",
    "camvid",
    "cocostuff27",
    "cocostuff171",
    "coco80",
    "cityscapes",
    "voc",
    "lip5",
    "lip16",
    "lip19",
]
BackboneName = Literal["dino", "random", "shuffled"]
MethodName = Literal["transfgu", "ablation", "sweep", "random", "shuffled", "picie", "stego"]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Range = Annotated[list[Share], Field(min_length=2, max_length=2)]


class Data(Section):
    """The images: card, "Data". Sizes in pixels; training crops are half as large."""

    name: DataName
    root: str | None  # has the data set's own layout; null where generated or in the mirror
    label_map: str | None  # JSON, {"png value": class}, for cocostuff27, lip5 and lip16
    height: Count
    width: Count
    train: Whole  # images, at most; 0 takes all
    test: Whole
    pretrain: Whole  # generated images for pre-training; 0 takes windows of the training images


class Backbone(Section):
    """The encoder, and where its weights come from."""

    weights: str  # "train", a DINO or DINOv2 file, or "timm:<name>"
    patch: Count  # this and the following: of "train", and of the random encoder
    width: Count
    depth: Count
    heads: Count
    native: Count  # side of the patch grid that positions are learned at


class Pretrain(Section):
    """DINO: card, "Pretrain". Rates in steps."""

    steps: Count
    batch: Count
    lr: Positive
    warmup: Whole
    weight_decay: NonNegative
    momentum: Fraction
    teacher_temperature: Positive
    prototypes: Count
    hidden: Count
    bottleneck: Count
    global_size: Count
    local_size: Count
    locals: Count
    global_scale: Range
    local_scale: Range
    rotate: NonNegative  # degrees


class Windows(Section):
    """The class-token bank: card, "Class-token feature bank"."""

    scales: Annotated[list[Fraction], Field(min_length=1)]  # of the shorter side
    foreground: bool  # split by attention into things and stuff banks; false keeps all windows
    size: Count  # a window's shorter side after resizing


class Cluster(Section):
    """Concepts, and other numbers of things for the granularity table."""

    things: Count
    stuff: Whole
    background: bool  # things only: channel 0 of the head is background
    n_init: Count
    sweep: Annotated[list[Positive], AfterValidator(distinct)]  # factors on `things`


class Cam(Section):
    """The maps: card, "Pseudo masks"."""

    batch_size: Count  # the batch that the released code would average its loss over
    keep: Share


class Train(Section):
    """The head and its training: card, "Training with restarts"."""

    epochs: Count
    batch: Count
    lr: Positive
    weight_decay: NonNegative
    start: Count
    intervals: Annotated[list[Count], Field(min_length=1)]
    repeat: Count
    width: Count
    layers: Count
    heads: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    class_init: ClassInit
    augment: Literal["images", "tokens"]  # crops of images, or of tokens that are computed once

    @model_validator(mode="after")
    def _restarts_have_a_teacher(self) -> "Train":
        RestartSchedule(self.start, self.intervals)
        return self


class Rivals(Section):
    """Training of the PiCIE-style and STEGO-style rows."""

    rounds: Count
    steps: Count  # of a round
    batch: Count
    lr: Positive
    width: Count


class TransfguParams(Section):
    """The section `transfgu` of params.yaml."""

    scale: Scale
    launch: Literal["python"]
    seeds: Seeds
    methods: Annotated[list[MethodName], Field(min_length=1), AfterValidator(distinct)]
    data: Data
    backbone: Backbone
    pretrain: Pretrain
    windows: Windows
    cluster: Cluster
    cam: Cam
    train: Train
    rivals: Rivals

    @model_validator(mode="after")
    def _consistent(self) -> "TransfguParams":
        if self.data.name == "partscenes" and 0 in (self.data.train, self.data.test):
            raise ValueError("data: partscenes is generated; train and test say how many images")
        if self.data.name not in ("partscenes", "camvid") and self.data.root is None:
            raise ValueError(f"data.root: give the folder of {self.data.name}")
        if self.data.name in ("cocostuff27", "lip5", "lip16") and self.data.label_map is None:
            raise ValueError(
                f"data.label_map: {self.data.name} merges classes; give the JSON file that says how"
            )
        if self.cluster.background and self.cluster.stuff:
            raise ValueError("cluster.background: is for things only; stuff must be 0")
        if "transfgu" not in self.methods:
            raise ValueError("methods: 'transfgu' must be among them")
        return self

    @property
    def backbones(self) -> list[BackboneName]:
        """The encoders that the methods need, the main one first."""
        others: list[BackboneName] = ["random", "shuffled"]
        return ["dino", *(name for name in others if name in self.methods)]
