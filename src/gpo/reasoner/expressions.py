"""Nested expressions and their evaluation one operation at a time, for arithmetic of any number of brackets.

An expression is a number or a bracket: a list of expressions with operators between them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from gpo.reasoner.arithmetic import OPERATORS, apply, random_term

Expression = Any


def shown(node: Expression) -> str:
    return str(node) if isinstance(node, (int, str)) else f"({' '.join(map(shown, node))})"


def in_parts(left: int, right: int) -> list[Expression] | None:
    """A product of two long numbers as a sum of easy ones: 49 * -37 as (49 * -30 + 49 * -7)."""
    whole, split = sorted((left, right), key=lambda number: len(str(abs(number)).rstrip("0")), reverse=True)
    digits = str(abs(split))
    sign = 1 if split > 0 else -1
    parts = [sign * int(digit) * 10**place for place, digit in enumerate(reversed(digits)) if digit != "0"][::-1]
    if len(parts) < 2 or len(str(abs(whole)).rstrip("0")) < 2:
        return None
    terms: list[Expression] = [whole, "*", parts[0]]
    for part in parts[1:]:
        terms += ["+", whole, "*", part]
    return terms


def simpler(node: list[Expression], compute: Callable[[int, str, int], int] = apply, by_parts: bool = False) -> Any:
    """The expression after its next operation: innermost brackets from the left, products before sums."""
    for i, part in enumerate(node):
        if isinstance(part, list):
            return [*node[:i], simpler(part, compute, by_parts), *node[i + 1 :]]
    at = node.index("*") if "*" in node else 1
    left, operator, right = node[at - 1 : at + 2]
    parts = in_parts(left, right) if by_parts and operator == "*" else None
    rest = [*node[: at - 1], parts or compute(left, operator, right), *node[at + 2 :]]
    return rest[0] if len(rest) == 1 else rest


def steps(
    node: Expression, compute: Callable[[int, str, int], int] = apply, by_parts: bool = False
) -> list[Expression]:
    """The expression after each operation, itself first; products of long numbers `by_parts` or at once."""
    states = [node]
    while isinstance(states[-1], list):
        states.append(simpler(states[-1], compute, by_parts))
    return states


def bracket(rng: Random, depth: int, numbers: int, largest: int = 9) -> list[Expression]:
    """A random bracket: `depth` 1 holds numbers, others two brackets."""
    if depth == 1:
        return random_term(rng, numbers, largest)
    left, operator = bracket(rng, depth - 1, numbers, largest), rng.choice(OPERATORS)
    return [left, operator, bracket(rng, depth - 1, numbers, largest)]
