"""The base class of every section of the configuration, and the types that fields share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# Every number is bounded on both sides, so that a slip of the finger is refused here, no product of
# two counts overflows int64, and no amount overflows float32.
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Amount = Annotated[float, Field(ge=0, le=1e38)]
PositiveAmount = Annotated[float, Field(gt=0, le=1e38)]
Fraction01 = Annotated[float, Field(ge=0, le=1)]
# Of a profile, an axis or an arm. It names files, and nothing in it must lead out of their folder.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]
# A dropout of 1 would drop everything, and an average with a decay of 1 would never move.
Rate = Annotated[float, Field(ge=0, lt=1)]


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"the path is {str(path)!r}, but there is no such home folder") from None


# A path as people write it: no shell takes the ~ out of a file or of `--set machine.runs=~/runs`.
UserPath = Annotated[Path, AfterValidator(_at_home)]


class Section(BaseModel, use_attribute_docstrings=True):
    """A frozen group of fields. Unknown fields, infinities and NaN are refused.

    The docstring under a field is its description in the JSON schema, which editors show as a
    tooltip.
    """

    # Frozen, because all parts of a run share its config, and its hash has named the folder.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
