"""The nine generated families, and which of their questions nobody may train on.

Every question is in the exact wording of a BIG-Bench Hard sub-task. `held_out.txt` lists 64-bit hashes of the real
questions, so that generators never hand out a real one and the real ones stay a test set.
"""

from __future__ import annotations

from functools import cache
from hashlib import blake2b
from importlib.resources import files
from random import Random

from gpo.errors import ConfigError, unknown
from gpo.reasoner import arithmetic, boolean, dyck, lies, navigate, temporal, tracking
from gpo.reasoner.example import NO_SLIPS, Example, Make, Slips

FAMILIES: dict[str, Make] = {
    "boolean_expressions": boolean.make,
    "dyck_languages": dyck.make,
    "multistep_arithmetic_two": arithmetic.make,
    "navigate": navigate.make,
    "web_of_lies": lies.make,
    "temporal_sequences": temporal.make,
    "tracking_shuffled_objects_three_objects": tracking.family(3),
    "tracking_shuffled_objects_five_objects": tracking.family(5),
    "tracking_shuffled_objects_seven_objects": tracking.family(7),
}


# What a family's size counts, and the sizes that there are: (unit, smallest, largest).
SIZES: dict[str, tuple[str, int, int]] = {
    "boolean_expressions": ("symbols", 2, 24),
    "dyck_languages": ("symbols", 2, 90),
    "multistep_arithmetic_two": ("brackets", 1, 8),
    "navigate": ("instructions", 1, 20),
    "web_of_lies": ("people", 2, 16),
    "temporal_sequences": ("events", 2, 8),
    "tracking_shuffled_objects_three_objects": ("swaps", 1, 20),
    "tracking_shuffled_objects_five_objects": ("swaps", 1, 20),
    "tracking_shuffled_objects_seven_objects": ("swaps", 1, 20),
}


def question_hash(question: str) -> str:
    """16 hexadecimal digits that identify a question whatever its white space."""
    return blake2b(" ".join(question.split()).encode(), digest_size=8).hexdigest()


@cache
def held_out() -> frozenset[str]:
    """Hashes of the real questions of the nine sub-tasks."""
    return frozenset(files("gpo.reasoner").joinpath("held_out.txt").read_text().split())


def generate(
    family: str, rng: Random, level: float | None = None, slips: Slips = NO_SLIPS, size: int | None = None
) -> Example:
    """A question that is not in the real files.

    `level` in (0, 1] makes it easier and varies its size; None draws sizes like the real questions. `size` is one of
    `SIZES`, whatever the level.

    Raises:
        ConfigError: the family or the size is unknown.
    """
    if family not in FAMILIES:
        raise unknown("family", family, FAMILIES)
    unit, smallest, largest = SIZES[family]
    if size is not None and not smallest <= size <= largest:
        raise ConfigError(f"{family} has no questions of {size} {unit}, expected {smallest} to {largest}.")
    while True:
        example = FAMILIES[family](rng, level, slips, size)
        if question_hash(example.question) not in held_out():
            return example
