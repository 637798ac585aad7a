"""Damage to a file of JSON lines: to each line in turn, in each of several ways."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random

Lines = list[bytes]


def cut_short(lines: Lines, at: int) -> Lines:
    return [*lines[:at], lines[at][: len(lines[at]) // 2]]


def cut_inside(lines: Lines, at: int) -> Lines:
    return [*lines[:at], lines[at][: len(lines[at]) // 2] + b"\n", *lines[at + 1 :]]


def garbage(lines: Lines, at: int) -> Lines:
    return [*lines[:at], Random(at).randbytes(40).replace(b"\n", b"") + b"\n", *lines[at + 1 :]]


def zeros(lines: Lines, at: int) -> Lines:
    return [*lines[:at], bytes(len(lines[at]) - 1) + b"\n", *lines[at + 1 :]]


def no_object(lines: Lines, at: int) -> Lines:
    return [*lines[:at], b"[]\n", *lines[at + 1 :]]


def empty_line(lines: Lines, at: int) -> Lines:
    return [*lines[:at], b"\n", *lines[at:]]


def twice(lines: Lines, at: int) -> Lines:
    return [*lines[: at + 1], *lines[at:]]


def missing(lines: Lines, at: int) -> Lines:
    """Not the first of a chunk, without which the others look like a smaller one."""
    last = at and re.match(rb'\{"chunk": \d+, "left": 0,', lines[at - 1])
    return lines if last or not at else [*lines[:at], *lines[at + 1 :]]


def swapped(lines: Lines, at: int) -> Lines:
    following = (at + 1) % len(lines)
    changed = list(lines)
    changed[at], changed[following] = changed[following], changed[at]
    return changed


def flipped(lines: Lines, at: int) -> Lines:
    """One bit, which no format without checksums can notice everywhere."""
    line = bytearray(lines[at])
    place = Random(at).randrange(len(line))
    line[place] ^= 1 << Random(at + 1).randrange(8)
    return [*lines[:at], bytes(line), *lines[at + 1 :]]


# Ways that leave a file which cannot have been written so; a run must see it, or make the rest anew as it was.
SEEN: dict[str, Callable[[Lines, int], Lines]] = {
    way.__name__: way for way in (cut_short, cut_inside, garbage, zeros, no_object, empty_line)
}
# The same of chunks, whose rows are counted.
COUNTED = SEEN | {way.__name__: way for way in (twice, missing, swapped)}
ALL = COUNTED | {"flipped": flipped}


def damages(content: bytes, ways: dict[str, Callable[[Lines, int], Lines]]) -> Iterator[tuple[str, bytes]]:
    """The damaged contents, each with what was done; those that are no damage (a swap of equal lines) are left out."""
    lines = content.splitlines(keepends=True)
    for at in range(len(lines)):
        for name, way in ways.items():
            damaged = b"".join(way(lines, at))
            if damaged != content:
                yield f"{name} at line {at + 1}", damaged
