"""The base class of every section of the configuration, and the types that fields share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from mirai_bench.utils import plugins
from mirai_bench.utils.errors import unknown

# Every number is bounded on both sides, so that a slip of the finger is refused here, no product of
# two counts overflows int64, and no amount overflows float32.
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Amount = Annotated[float, Field(ge=0, le=1e38)]
PositiveAmount = Annotated[float, Field(gt=0, le=1e38)]
Fraction01 = Annotated[float, Field(ge=0, le=1)]
# Of a profile, an axis or an arm. It names files, and nothing in it must lead out of their folder.
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]
# A dropout of 1 would drop everything, and an average with a decay of 1 would never move.
Rate = Annotated[float, Field(ge=0, lt=1)]


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"the path is {str(path)!r}, but there is no such home folder") from None


# A path as people write it: no shell takes the ~ out of a file or of `--set machine.runs=~/runs`.
UserPath = Annotated[Path, AfterValidator(_at_home)]


class Named:
    """Annotates a text that names an entry of a dictionary: a built-in one, or that of a plug-in.

    The rooms of the dictionaries import torch, so that the built-in names are written here as well; a test
    compares them. With `listed`, the JSON schema lists them.
    """

    def __init__(self, kind: str, *builtin: str, listed: bool = True, prefix: str | None = None) -> None:
        """A name that begins with `prefix` is passed: another library knows those."""
        self.kind = kind
        self.builtin = builtin
        self.listed = listed
        self.prefix = prefix

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        shown = handler(schema)
        return shown | {"enum": list(self.builtin)} if self.listed else shown

    def check(self, name: str) -> str:
        """Returns the name. Raises an error that suggests the nearest one if nothing has it."""
        known = [*self.builtin, *plugins.names(self.kind)]
        if name in known or (self.prefix is not None and name.startswith(self.prefix)):
            return name
        shown = [*known, f"{self.prefix}<name>"] if self.prefix is not None else known
        message = str(unknown(self.kind, name, shown))
        raise PydanticCustomError("unknown_name", "{message}", {"message": message})


class Section(BaseModel, use_attribute_docstrings=True):
    """A frozen group of fields. Unknown fields, infinities and NaN are refused.

    The docstring under a field is its description in the JSON schema, which editors show as a
    tooltip.
    """

    # Frozen, because all parts of a run share its config, and its hash has named the folder.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
