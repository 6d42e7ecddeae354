"""Typed parameters: `params.yaml` read into pydantic models, every mistake told in one line."""

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from stages.common.stage.errors import ParameterError

PARAMS_FILE = Path("params.yaml")

Scale = Literal["quick", "real", "paper"]
Fraction = Annotated[float, Field(gt=0, lt=1)]


def distinct(values: list[Any]) -> list[Any]:
    """The values, none of which may appear twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"{values} names a value twice")
    return values


Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(distinct)]
# `-S chex.prune.flops=0.4` on the command line gives a number where the presets give a list
Fractions = Annotated[
    list[Fraction],
    BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    Field(min_length=1),
    AfterValidator(distinct),
]


class Section(BaseModel):
    """One section of the parameters: unknown keys and wrong types are errors, values are frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Model = TypeVar("Model", bound=Section)


def load_params(model: type[Model], paper: str, path: Path = PARAMS_FILE) -> Model:
    """Read the section `paper` of `path` as `model`.

    Raises:
        ParameterError: one line with the key, its value and what is allowed.
    """
    try:
        values = yaml.load(path.read_text(), yaml.CSafeLoader)  # a tenth of the time of `safe_load`
    except FileNotFoundError:
        raise ParameterError(f"{path}: not found; run from the repository's root") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ParameterError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or paper not in values:
        raise ParameterError(f"{path}: no section '{paper}'")
    try:
        return model.model_validate(values[paper])
    except ValidationError as error:
        first = error.errors()[0]
        raise ParameterError(f"{path}: {_explain(model, paper, first)}") from None


def _explain(model: type[BaseModel], paper: str, error: Any) -> str:
    """One line for one pydantic error: the dotted key, the value, what is allowed."""
    location = error["loc"]
    key = ".".join([paper, *map(str, location)])
    match error["type"]:
        case "extra_forbidden":
            allowed = ", ".join(_fields_at(model, location[:-1]))
            return f"{key}: unknown key; allowed here: {allowed}"
        case "missing":
            return f"{key}: missing"
        case _:
            message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
            return f"{key} = {error['input']!r}: {message}"


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the keys allowed in the (nested) section that `location` points to."""
    for name in location:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), model)
    return list(model.model_fields)
