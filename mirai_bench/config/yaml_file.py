"""YAML of configurations. What is wrong with it is a UserError, and what is hostile is refused at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

import yaml

from mirai_bench.utils.errors import UserError, shortened

MOST_VALUES = 100_000  # in one YAML file, once its aliases are written out
MOST_BYTES = 200_000  # of one YAML file, which is read at 100 kB/s
MOST_NESTED = 50  # levels of one YAML file, whose scanner takes time with their square
# What constructing a value from YAML may raise, for instance from `!!int ''`. TypeError and
# RecursionError: a value that is a key, and thousands of brackets.
BAD_YAML = (
    yaml.YAMLError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    ArithmeticError,
    RecursionError,
)


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key written twice, and values within more than MOST_NESTED others.

    YAML would silently keep the last of two keys.
    """

    levels = 0  # that are open where the loader reads

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.levels += 1
        if self.levels > MOST_NESTED:
            raise UserError(
                f"{self.name}, line {self.line + 1}: values stand within more than {MOST_NESTED} others, "
                "which no configuration needs"
            )
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            mark = key_node.start_mark
            line = f"{mark.name}, line {mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{line}: a key must be a word, found {shortened(repr(key))}")
            if not isinstance(key, str):
                word = shortened(key_node.value)
                kind = type(key).__name__
                raise UserError(f"{line}: the key {word} is read as {kind}: write it in quotes, '{word}'")
            if key in seen:
                raise UserError(f"{line}: {key!r} is written twice: give each its own name")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _num_values(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns the number of values once every alias is written out. `known` holds counted nodes.

    Nine levels of nine aliases are half a billion values, which an error message would write out.
    """
    if id(node) not in known:
        known[id(node)] = 1  # so that a node that contains itself ends
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        for child in children:
            # A child of a mapping is a pair: the key and its value.
            for part in child if isinstance(child, tuple) else (child,):
                known[id(node)] += _num_values(part, known)
    return known[id(node)]


def yaml_value(text: str | TextIO, where: str) -> Any:
    """Returns the value of a YAML text, or None if it is empty. `where` names it in messages.

    Raises UserError if it holds far more than any configuration, and one of BAD_YAML if it is no YAML.
    """
    loader = _Loader(text)
    loader.name = where
    node = loader.get_single_node()  # None if the text is empty
    if node is None:
        return None
    if _num_values(node, {}) > MOST_VALUES:
        raise UserError(
            f"{where} holds more than {MOST_VALUES} values once its aliases are written "
            "out: write it without them"
        )
    # `deep` refuses a mapping that contains itself, which would be an endless dict.
    return loader.construct_object(node, deep=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns the fields of a YAML file. Raises UserError if it is unreadable, or no mapping."""
    try:
        if not path.is_file():
            raise UserError(f"There is no file {str(path)!r}")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} has more than {MOST_BYTES:,} bytes, which no configuration needs")
        with open(path, encoding="utf-8") as file:
            value = yaml_value(file, str(path))
    except (*BAD_YAML, OSError) as error:
        reason = shortened(str(error).strip(), 500) or type(error).__name__
        raise UserError(f"{path} is not readable YAML: {reason}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold `key: value` lines, found {type(value).__name__}")
    return value
