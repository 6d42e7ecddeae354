"""Parameters of the HiCo pipeline (`conf/hico/*.yaml`)."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from stages.common.stage.params import Scale, Section, Seeds, distinct

SourceName = Literal["generated", "breakfast", "hacs", "uk400", "k400"]
TargetName = Literal["generated", "breakfast", "ucf101", "hmdb51", "activitynet"]
Mode = Literal["lft", "full"]
MethodName = Literal[
    "scratch",
    "simclr",
    "simclr-trimmed",
    "vcl-0",
    "vcl-0.5",
    "vcl-1",
    "vcl-5",
    "vcl-10",
    "vcl-gradual",
    "vcl-3-clips",
    "tcl",
    "hico",
    "hico-fixed",
    "hico-trimmed",
    "hico-far-positive",
    "hico-weight-0.5",
    "hico-weight-2",
    "hico-gamma-0",
    "hico-gamma-2",
    "hico-difference",
    "hico-dot",
]
METHOD_NAMES: tuple[MethodName, ...] = get_args(MethodName)
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[list[Positive], Field(min_length=2, max_length=2)]


class Clip(Section):
    """Geometry of a clip: `frames`, `rate` apart on a clock of `target_fps`."""

    frames: Annotated[int, Field(ge=2)]
    rate: Count
    target_fps: Positive
    height: Count  # files are decoded at this size, and what is over is cut off
    width: Count
    size: Count  # height and width of what the network sees

    @property
    def seconds(self) -> float:
        """Length of a clip."""
        return self.frames * self.rate / self.target_fps


class Augmentation(Section):
    """Card, "Augmentation": crop, flip, colour; factors U(1 - x, 1 + x)."""

    area: Range  # of the crop, as a share of the frame's
    aspect: Range
    flip: Share
    jitter: Share  # probability of the four that follow
    brightness: NonNegative
    contrast: NonNegative
    saturation: NonNegative
    hue: Annotated[float, Field(ge=0, le=0.5)]
    gray: Share
    gray_first: bool
    blur: Share  # the official one has a kernel of one pixel, which is none: 0


class Pretrain(Section):
    """Card, "Losses" and "Optimisation"."""

    length: Count
    unit: Literal["steps", "epochs"]  # an epoch is one pass over the videos
    batch: Annotated[int, Field(ge=2)]  # videos a step, over all processes
    optimizer: Literal["lars", "adamw"]
    lr: Positive  # LARS: for 256 clips a step, scaled to the batch; AdamW: as it is
    warmup: NonNegative  # share of the training
    warmup_lr: NonNegative  # where the warm-up starts
    weight_decay: NonNegative
    exclude: bool  # BN and biases from LARS
    temperature: Positive
    gamma: NonNegative  # focusing exponent of the topic loss
    distance: Annotated[
        list[NonNegative], Field(min_length=2, max_length=2)
    ]  # of gradual sampling, in seconds
    hidden: Count  # of the projection heads
    out: Count
    predictor: Count  # hidden width of the topic predictor
    precision: Literal["float32", "bfloat16"]
    augmentation: Augmentation


class Finetune(Section):
    """Card, "Fine-tuning"; the linear probe on frozen features is always taken."""

    modes: Annotated[list[Mode], AfterValidator(distinct)]  # lft: head only, BN statistics adapt; full: all
    epochs: Count
    batch: Annotated[int, Field(ge=2)]
    lr: Positive
    warmup: NonNegative  # epochs
    warmup_lr: NonNegative
    weight_decay: NonNegative
    views: Count  # clips a video at test time
    augmentation: Augmentation


class Bmn(Section):
    """The boundary-matching network that localises actions (BMN, sections 3 and 4.1)."""

    places: Annotated[int, Field(ge=2)]  # of a video, spread evenly, at which a clip's features are taken
    durations: Count  # longest proposal, in places
    points: Count  # of a proposal that are looked at
    width: Annotated[int, Field(multiple_of=2, ge=2)]
    epochs: Count
    batch: Count
    lr: Positive
    decay_epoch: Count  # from here on a tenth of `lr`
    weight_decay: NonNegative
    proposals: Count  # of a video, that are kept

    @model_validator(mode="after")
    def _consistent(self) -> "Bmn":
        if self.durations > self.places:
            raise ValueError(f"durations: {self.durations}, more than the {self.places} places of a video")
        return self


class Theory(Section):
    """The simulation of gradual sampling: every scale's seeds are 0 .. `seeds` - 1."""

    seeds: Annotated[int, Field(ge=2)]
    steps: Annotated[int, Field(ge=2)]


class HicoParams(Section):
    """The section `hico` of params.yaml."""

    scale: Scale
    launch: Literal["python", "torchrun --nproc-per-node=gpu"]  # how training stages start
    seeds: Seeds
    methods: Annotated[list[MethodName], Field(min_length=1), AfterValidator(distinct)]
    net: Literal["s3d-tiny", "s3dg", "r2plus1d10", "mixed-resnet18"]
    untrimmed: Literal["generated", "breakfast", "hacs", "uk400"]
    trimmed: Literal["generated", "breakfast", "k400"] | None
    targets: Annotated[list[TargetName], Field(min_length=1), AfterValidator(distinct)]
    video_root: str | None  # has a folder for each set that is named above; null where generated
    on_bad: Literal["skip", "refuse"]  # what happens to videos that cannot be used
    in_memory: bool  # decode every file once and keep it; otherwise files are read while training
    workers: Annotated[int, Field(ge=0)]  # loader processes
    clip: Clip
    pretrain: Pretrain
    finetune: Finetune
    bmn: Bmn | None  # null: localisation by a linear classifier on sliding windows
    theory: Theory

    @model_validator(mode="after")
    def _consistent(self) -> "HicoParams":
        names = {self.untrimmed, *self.targets, *([self.trimmed] if self.trimmed else [])}
        if "generated" in names and len(names) > 1:
            raise ValueError("untrimmed, trimmed, targets: 'generated' stands alone")
        if self.trimmed is None and any(name.endswith("-trimmed") for name in self.methods):
            raise ValueError("trimmed: null, but a method trains on trimmed video")
        return self
