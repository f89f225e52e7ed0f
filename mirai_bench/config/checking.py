"""Fields become a checked section. What is wrong with them is one UserError, in the words of this project."""

from __future__ import annotations

from datetime import date
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from mirai_bench.config.regularizer import BUILTIN
from mirai_bench.utils.errors import UserError, unknown

MOST_SHOWN = 80  # characters of a wrong value in a message
# Types that YAML 1.1 sees in `no`, `2024-01-01`, `12` or `null`, where a text was meant.
NO_TEXT = (bool, int, float, date, type(None))
# Pydantic names its own validators among the fields that lead to an error. No user knows them.
INTERNAL_NAMES = ("function-", "constrained-", "lax-or-strict")
REGULARIZER = "regularizer"  # the section of which there are several, told apart by their `name`

M = TypeVar("M", bound=BaseModel)


def checked(model: type[M], fields: Any, where: str) -> M:
    """Returns the model of these fields. `where` names their origin in messages.

    Raises one UserError with all that is wrong, with suggestions for misspelt names.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        lines = [_explain(model, details) for details in error.errors()]
    first = "\n  " if len(lines) > 1 else ""  # each of several on a line of its own
    raise UserError(f"{where}: {first}" + "\n  ".join(lines))


def _explain(model: type[BaseModel], error: Any) -> str:
    """Returns one of pydantic's errors in the words of this project."""
    names = [str(part) for part in error["loc"]]
    path = [name for name in names if not name.startswith(INTERNAL_NAMES)]
    # Without the regularizer's name, by which pydantic tells the built-in sections apart.
    shown = path[:1] + path[2:] if path[:1] == [REGULARIZER] and set(path[1:2]) & set(BUILTIN) else path
    where = ".".join(shown)
    if error["type"] == "extra_forbidden":
        message = str(unknown("field", path[-1], _fields_at(model, path[:-1])))
        return f"{message} (in {'.'.join(shown[:-1])})" if path[:-1] else message
    if error["type"] == "union_tag_invalid":
        names = error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return str(unknown(REGULARIZER, error["ctx"]["tag"], names))
    if error["type"] == "union_tag_not_found":
        return f"{where}.name is missing: write which regularizer is meant"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # raised by a validator of ours, which names the field
        return message
    if error["type"] == "unknown_name":
        return f"{where}: {message}"
    if error["type"] == "missing":
        return f"{where} is missing"
    found = repr(error.get("input"))
    if len(found) >= MOST_SHOWN:
        found = found[: MOST_SHOWN - 3] + "…"
    quotes = "; write it in quotes" if _was_meant_as_text(error) else ""
    return f"{where} is {found}: {message[0].lower()}{message[1:]}{quotes}"


def _was_meant_as_text(error: Any) -> bool:
    wants_text = error["type"] in ("string_type", "path_type", "literal_error")
    return wants_text and isinstance(error["input"], NO_TEXT)


def _fields_at(model: type[BaseModel], path: list[str]) -> list[str]:
    """Returns the names of the fields of the section that `path` leads to."""
    sections: list[type[BaseModel]] = []  # that the field before may hold
    for part in path:
        if part not in model.model_fields:  # a name, by which one of several sections is chosen
            named = [each for each in sections if part in get_args(each.model_fields["name"].annotation)]
            model = named[0] if named else model
            continue
        annotation = model.model_fields[part].annotation
        # The section itself, or those in a union such as `Search | None`.
        items = (annotation, *get_args(annotation))
        sections = [item for item in items if isinstance(item, type) and issubclass(item, BaseModel)]
        model = sections[0] if sections else model
    return [name for name, field in model.model_fields.items() if not field.exclude]
