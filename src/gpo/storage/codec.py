"""Dataclasses as JSON and back."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gpo.errors import DataError
from gpo.images.tokens import FIRST
from gpo.types import Group, Start

T = TypeVar("T")
SHARED = 18  # bits of the whole numbers that are one object wherever they come: token ids of nearly all vocabularies


def to_json(value: Any) -> Any:
    """What `json.dumps` takes: dataclasses as objects of their fields, tuples as lists, numbers not finite as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, list | tuple):
        return _list_to_json(value)
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"A {type(value).__name__} cannot be stored as JSON.")


def _list_to_json(values: Sequence[Any]) -> list[Any]:
    kinds = set(map(type, values))  # most of a file is in long lists of one kind
    if kinds <= {int, str}:
        return list(values)
    if kinds == {float}:
        return [number if math.isfinite(number) else None for number in values]
    return [to_json(value) for value in values]


def dotted(settings: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Settings within settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        found |= dotted(value, f"{path}{key}.") if inner else {f"{path}{key}": value}
    return found


def from_json(kind: type[T], data: Any) -> T:
    """The inverse of `to_json` for a dataclass or any type its fields may have.

    What is often the same is one object: the start of a group and those of its trajectories, and each token id.

    Raises:
        DataError: a field is missing, unknown or of another type; the message names it.
    """
    decoded: T = _decode(kind, data, getattr(kind, "__name__", str(kind)))
    return decoded


def _decode(kind: Any, data: Any, where: str) -> Any:
    if is_dataclass(kind):
        return data if type(data) is kind else _decode_dataclass(kind, data, where)
    if kind is float:
        return math.nan if data is None else float(plain(data, where, int, float))
    if kind is Path:
        return Path(plain(data, where, str))
    if kind is Any:
        return data
    if get_origin(kind) is None:
        return plain(data, where, kind)
    return _decode_generic(get_origin(kind), get_args(kind), data, where)


def _decode_generic(origin: Any, arguments: tuple[Any, ...], data: Any, where: str) -> Any:
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, data, where)
    if origin is Literal:
        if data not in arguments:
            raise DataError(f"{where} is {shortened(data)}, expected one of {', '.join(map(str, arguments))}.")
        return data
    if origin is tuple:
        item = arguments[0]
        if item is int:  # token ids, the bulk of every file
            return _whole_numbers(plain(data, where, list), where)
        entries = plain(data, where, list)
        # Log-probabilities, nearly as many.
        if item is float and set(map(type, entries)) <= {float, int, types.NoneType}:
            return tuple(math.nan if entry is None else float(entry) for entry in entries)
        return tuple(_decode(item, entry, f"{where}[{i}]") for i, entry in enumerate(entries))
    return plain(data, where, dict if issubclass(origin, Mapping) else origin)


def _whole_numbers(data: list[Any], where: str) -> tuple[int, ...]:
    """Token ids, offsets and counts: from 0, and small enough for 32 bits, or of an image."""
    odd = set(map(type, data)) - {int} or (data and not (min(data) >= 0 and max(data) < 2**31))
    if not odd and data and (bits := max(data).bit_length()) <= SHARED:
        return tuple(map(_numbers(bits).__getitem__, data))  # 8 bytes each, not 40
    if odd and not _of_images(data):
        raise DataError(f"{where} is {shortened(data)}, expected whole numbers from 0 on.")
    return tuple(data)


@cache
def _numbers(bits: int) -> list[int]:
    """The whole numbers of so many bits, each at its place; those of fewer bits are the same objects."""
    return [*_numbers(bits - 1), *range(1 << bits - 1, 1 << bits)] if bits else [0]


def _of_images(data: list[Any]) -> bool:
    return all(type(entry) is int and (0 <= entry < 2**31 or FIRST <= entry < 2**63) for entry in data)


def _decode_union(members: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and types.NoneType in members:
        return None
    *others, last = (member for member in members if member is not types.NoneType)
    for member in others:
        with suppress(DataError):
            return _decode(member, data, where)
    return _decode(last, data, where)


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    hints, required = _fields(kind)
    data = plain(data, where, dict)
    if missing := required - data.keys():
        raise DataError(f"{where} lacks {', '.join(sorted(missing))}.")
    if extra := data.keys() - hints.keys():
        raise DataError(f"{where} has no field {', '.join(sorted(extra))}.")
    if kind is Group:
        data = _with_one_start(data, where)
    return kind(**{name: _decode(hints[name], value, f"{where}.{name}") for name, value in data.items()})


def _with_one_start(data: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The data of a group with its start decoded, here and in the trajectories that begin there: nearly all do."""
    same, trajectories = data["start"], plain(data["trajectories"], f"{where}.trajectories", list)
    start = _decode(Start, same, f"{where}.start")
    shared = [
        {**each, "start": start} if isinstance(each, dict) and each.get("start") == same else each
        for each in trajectories
    ]
    return {"start": start, "trajectories": shared}


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """Types of the fields by name, and the names of those that have no default."""
    hints = get_type_hints(kind)
    required = {field.name for field in fields(kind) if field.default is MISSING and field.default_factory is MISSING}
    return {field.name: hints[field.name] for field in fields(kind)}, required


def plain(data: Any, where: str, *kinds: type) -> Any:
    """The value, if it is of one of these types; True and False are no numbers.

    Raises:
        DataError: it is not.
    """
    if not isinstance(data, kinds) or (isinstance(data, bool) and bool not in kinds):
        raise DataError(f"{where} is {shortened(data)}, expected {' or '.join(kind.__name__ for kind in kinds)}.")
    return data


def shortened(data: Any) -> str:
    """As JSON, its beginning only if that is long."""
    text = json.dumps(data)
    return text if len(text) <= 60 else text[:57] + "..."
