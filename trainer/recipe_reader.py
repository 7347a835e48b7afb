"""Recipes are read from flat YAML files, strictly: every key is known, every value of its type."""

import dataclasses
import types
import typing
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub.dataclasses import type_validator
from huggingface_hub.errors import StrictDataclassError

from umarvel_hf.trainer.recipe import KINDS, Captions, Data, Instructions, Nli, Recipe, Stage
from umarvel_hf.trainer.recipe_checks import check, check_keys, text_for_number

Kind = TypeVar("Kind")


class _EachKeyOnce(yaml.SafeLoader):
    """YAML whose mappings have every key once, where the library takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Called before the keys of ``<<`` are joined, which a mapping's own may well override."""
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}, key=str):
            raise yaml.YAMLError(f"{repeated} stand twice in one mapping{node.start_mark}")
        return node


def recipe_file(recipe: str | Path) -> Traversable:
    """The file of a shipped recipe, or of any other by its path; FileNotFoundError where there is none."""
    own = [file for file in files("umarvel_hf.recipes").iterdir() if file.name.endswith(".yaml")]
    shipped = {file.name.removesuffix(".yaml"): file for file in own}
    path = shipped.get(str(recipe), Path(recipe))
    if not path.is_file():
        listed = ", ".join(sorted(shipped))
        raise FileNotFoundError(f"{recipe} is neither a file nor a shipped recipe; shipped are: {listed}.")
    return path


def read_recipe(recipe: str | Path) -> Recipe:
    """Read a recipe: the name of one that is shipped, or the path of a YAML file.

    Raises:
        FileNotFoundError: Neither a file nor a shipped recipe; the shipped ones are listed.
        ValueError: A key is unknown or missing, a value of another type, or stages do not fit together.
    """
    path = recipe_file(recipe)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML ({' '.join(str(error).split())}).") from error
    read = _build(Recipe, content, f"{path}")
    check(read, f"{path}")
    return read


def _build(kind: type[Kind], given: Any, where: str) -> Kind:
    """A dataclass of plain values, each of the field's type."""
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    required = [
        one.name for one in fields if one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    ]
    check_keys(where, given, [one.name for one in fields], required)
    values = {name: _value(hints[name], value, f"{where}: {name}") for name, value in given.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if hint == list[Stage]:
        return [_stage(one, f"{where}[{at}]") for at, one in enumerate(_list(value, where))]
    if hint == list[Data]:
        return [_data(one, f"{where}[{at}]") for at, one in enumerate(_list(value, where))]
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    nested = [option for option in options if dataclasses.is_dataclass(option)]
    if nested and isinstance(value, dict):
        return _build(nested[0], value, where)  # type: ignore[arg-type]
    if isinstance(value, list) and any(typing.get_origin(option) is tuple for option in options):
        value = tuple(value)
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        value = float(value)
    if hint == dict[str, float] | None and isinstance(value, dict):
        value = {name: float(one) if isinstance(one, int) else one for name, one in value.items()}
    try:
        type_validator(where, value, hint)
    except (StrictDataclassError, TypeError, ValueError) as error:
        wanted = str(hint).replace("typing.", "").replace("<class '", "").replace("'>", "")
        number = text_for_number(value)
        remedy = f" Without a point YAML reads it as text; write {number}." if number else ""
        raise ValueError(f"{where} is {value!r}; it must be {wanted}.{remedy}") from error
    return value


def _stage(given: Any, where: str) -> Stage:
    kind, name = (given.get("kind"), given.get("name")) if isinstance(given, dict) else (given, None)
    named = where if name is None else f"{where} ({name})"
    if not isinstance(given, dict) or kind not in list(KINDS):  # a list is no key to look for
        raise ValueError(f"{named}: kind is {kind!r}; it must be one of {', '.join(KINDS)}.")
    return _build(KINDS[kind], {name: value for name, value in given.items() if name != "kind"}, named)


def _data(given: Any, where: str) -> Data:
    kinds: dict[str, type[Data]] = {"nli": Nli, "captions": Captions, "mbeir": Instructions}
    named = [name for name in kinds if isinstance(given, dict) and name in given]
    if len(named) != 1:
        raise ValueError(f"{where}: found {given!r}; a data set is named by exactly one of {', '.join(kinds)}.")
    return _build(kinds[named[0]], given, where)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is {value!r}; it must be a list of at least one.")
    return value
