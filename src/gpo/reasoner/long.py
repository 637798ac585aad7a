"""Questions of every size that there is, for a reasoner whose success falls from nearly always to nearly never.

Slips are rarer than in `pretrain.SLIPS` where questions are small, and tied to what large ones have more of (deep
stacks, a person who swaps again): a ladder of sizes is then one of success too.
"""

from __future__ import annotations

from random import Random

from gpo.reasoner.example import Example, Slips
from gpo.reasoner.families import SIZES, generate

MIXTURE = {  # shares of the examples
    "boolean_expressions": 1.5,
    "web_of_lies": 1.0,
    "dyck_languages": 1.5,
    "multistep_arithmetic_two": 2.0,
    "navigate": 0.8,
    "temporal_sequences": 0.5,
    "tracking_shuffled_objects_three_objects": 1.0,
    "tracking_shuffled_objects_five_objects": 0.8,
    "tracking_shuffled_objects_seven_objects": 0.8,
}
AS_REAL = 0.15  # share of the examples that have the size of real questions
SLIPS = Slips(
    {
        "boolean.double_not": 0.5,
        "boolean.not": 0.02,
        "boolean.and": 0.08,
        "boolean.or": 0.08,
        "lies.liar_called_liar": 0.1,
        "lies.says": 0.02,
        "navigate.turn_around": 0.2,
        "navigate.turn": 0.02,
        "navigate.left_right": 0.06,
        "navigate.backwards": 0.06,
        "temporal.gap": 0.3,
        "temporal.recall": 0.05,
        "tracking.repeated": 0.12,
        "tracking.swap": 0.03,
        "tracking.bystander": 0.04,
        "dyck.pop_deep": 0.12,
        "dyck.pop": 0.01,
    }
)


def make(rng: Random) -> Example:
    """A question of a family in `MIXTURE`, every size as often as any other."""
    family = rng.choices(list(MIXTURE), list(MIXTURE.values()))[0]
    _, smallest, largest = SIZES[family]
    size = None if rng.random() < AS_REAL else rng.randint(smallest, largest)
    return generate(family, rng, None, SLIPS, size)
