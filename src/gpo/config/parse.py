"""The value that a text on the command line stands for, by the type of its setting."""

from __future__ import annotations

import json
import math
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from gpo.config.components import words
from gpo.errors import ConfigError
from gpo.storage.codec import from_json


class Bare(str):
    """The value of an option that was given without one, which only a setting that is true or false takes."""


def parse(kind: Any, text: str, where: str) -> Any:
    """The value of type `kind` that a text stands for: a number, true or false, none, a,b,c, or JSON.

    Raises:
        ConfigError: it stands for none.
    """
    if isinstance(text, Bare) and bool not in (kind, *get_args(kind)):
        raise ConfigError(f"{where} needs a value: {where} VALUE.")
    try:
        return _parse(kind, text)
    except (ValueError, KeyError):
        raise ConfigError(f"{where} is {text!r}, expected {words(kind)}.") from None


def _parse(kind: Any, text: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _parse_union(arguments, text)
    if kind in (Any, str):
        return text
    if kind is bool:
        arguments, text = (True, False), text.capitalize()
    if kind is bool or origin is Literal:
        return {str(value): value for value in arguments}[text]
    if kind is float and not math.isfinite(float(text)):
        raise ValueError(text)
    if kind in (int, float, Path):
        return kind(text)
    if origin in (tuple, list) and arguments and not text.startswith("["):
        return origin(_parse(arguments[0], item.strip()) for item in text.split(",") if item.strip())
    return from_json(kind, json.loads(text))


def _parse_union(members: tuple[Any, ...], text: str) -> Any:
    if types.NoneType in members and text.lower() == "none":
        return None
    # str takes every text, so it comes last.
    for member in sorted(members, key=lambda member: member in (str, Path)):
        try:
            if member is not types.NoneType:
                return _parse(member, text)
        except (ValueError, KeyError):
            continue
    raise ValueError(text)
