"""multistep_arithmetic_two: two or four brackets of small numbers, in the form of BIG-Bench-Mistake's traces."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gpo.reasoner.example import Example, Slips, between, listed

OPERATORS = ("+", "-", "*")
Term = list[int | str]  # numbers at even places, operators between them


def apply(left: int, operator: str, right: int) -> int:
    return left + right if operator == "+" else left - right if operator == "-" else left * right


def text(term: Term) -> str:
    return " ".join(str(part) for part in term)


def computed(left: int, operator: str, right: int, rng: Random, slips: Slips) -> int:
    """The result of one operation, now and then with a slip in the sign or by one or ten."""
    value = apply(left, operator, right)
    if operator == "*":
        if min(left, right) < 0 and slips(rng, "arithmetic.product_sign"):
            return -value
    elif operator == "-" and right < 0:
        if slips(rng, "arithmetic.minus_minus"):
            return left + right
    elif slips(rng, "arithmetic.sum"):
        return value + rng.choice((-10, -1, 1, 10))
    return value


def reduce_once(term: Term, rng: Random, slips: Slips) -> Term:
    """The term after one operation: products first, then from the left."""
    at = term.index("*") if "*" in term else 1
    left, operator, right = term[at - 1], term[at], term[at + 1]
    value = computed(int(left), str(operator), int(right), rng, slips)
    return [*term[: at - 1], value, *term[at + 2 :]]


def chain(term: Term, rng: Random, slips: Slips, *, marks: bool, keeps: bool) -> tuple[str, int]:
    """The equations from a bracket to its value: "(1 + 2 * 3) = (1 + 6) = 7", and the value.

    `marks` shows the product to be computed in brackets first; `keeps` leaves the value in brackets.
    """
    parts = [f"({text(term)})"]
    while len(term) > 1:
        if marks and "*" in term and len(term) > 3:
            at = term.index("*")
            marked = [*term[: at - 1], f"({text(term[at - 1 : at + 2])})", *term[at + 2 :]]
            parts.append(f"({text(marked)})")
        term = reduce_once(term, rng, slips)
        parts.append(f"({text(term)})" if len(term) > 1 or keeps else text(term))
    return " = ".join(parts), int(term[0])


def joined(parts: Sequence[str], operators: Sequence[str]) -> str:
    """ "A + B - C"."""
    return " ".join([parts[0], *(f"{op} {part}" for op, part in zip(operators, parts[1:], strict=True))])


def random_term(rng: Random, numbers: int, largest: int = 9) -> Term:
    term: Term = [rng.randint(-largest, largest)]
    for _ in range(numbers - 1):
        term += [rng.choice(OPERATORS), rng.randint(-largest, largest)]
    return term


def true_value(term: Term) -> int:
    while len(term) > 1:
        term = reduce_once(term, Random(0), Slips())
    return int(term[0])


def make(rng: Random, level: float | None, slips: Slips, size: int | None = None) -> Example:
    """With a level, fewer numbers a bracket, and a quarter of the questions with four brackets.

    A `size` is the number of brackets; other than two of them are added and subtracted in a row.
    """
    numbers = 4 if level is None else between(rng, 2, 4, level)
    four = not size and level is not None and rng.random() < 0.25 * level
    row = size is not None and size != 2
    terms = [random_term(rng, numbers) for _ in range(size or (4 if four else 2))]
    operators = [rng.choice(OPERATORS[:2] if row else OPERATORS) for _ in range(len(terms) - 1)]
    brackets = [f"({text(term)})" for term in terms]
    letters = "ABCDEFGH"[: len(terms)]
    marks, keeps = rng.random() < 0.3, rng.random() < 0.3
    wrapped = rng.random() < 0.3

    def layout(parts: list[str]) -> str:
        if four:
            first, second = f"{parts[0]} {operators[0]} {parts[1]}", f"{parts[2]} {operators[2]} {parts[3]}"
            return f"({first}) {operators[1]} ({second})"
        return joined(parts, operators)

    names = layout(list(letters))
    where = listed([f"{letter} = {bracket}" for letter, bracket in zip(letters, brackets, strict=True)])
    if len(terms) == 2:
        where = where.replace(", and ", " and ")
    lines = [f'This equation can be written as "{f"({names})" if wrapped and not four else names}", where {where}.']
    values = []
    for letter, term in zip(letters, terms, strict=True):
        steps, value = chain(term, rng, slips, marks=marks, keeps=keeps)
        lines.append(f"Let's calculate {letter} = {steps}.")
        values.append(value)
    truth = [true_value(term) for term in terms]
    equation = [names, layout([str(value) for value in values])]
    if four:
        left = computed(values[0], operators[0], values[1], rng, slips)
        right = computed(values[2], operators[2], values[3], rng, slips)
        equation.append(f"{left} {operators[1]} {right}")
        result = computed(left, operators[1], right, rng, slips)
        answer = apply(apply(truth[0], operators[0], truth[1]), operators[1], apply(truth[2], operators[2], truth[3]))
    else:
        result, answer = values[0], truth[0]
        for i, operator in enumerate(operators, start=1):
            result = computed(result, operator, values[i], rng, slips)
            answer = apply(answer, operator, truth[i])
            if i < len(operators):
                equation.append(joined([str(result), *map(str, values[i + 1 :])], operators[i:]))
    if len(terms) > 1:
        equation.append(str(result))
    lines.append(f"Then, the final equation is {' = '.join(equation)}. So the answer is {result}")
    return Example(f"({layout(brackets)}) =", "\n".join(lines), str(answer))
