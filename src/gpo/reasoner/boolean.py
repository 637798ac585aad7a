"""boolean_expressions: "not ( True ) and ( True ) is", solved by one reduction a line."""

from __future__ import annotations

from random import Random

from gpo.reasoner.example import NO_SLIPS, Example, Slips, between

REAL_LENGTH = 8  # tokens of every real expression


def expression(rng: Random, length: int) -> list[str]:
    """A random expression of exactly `length` tokens."""
    if length == 1:
        return [rng.choice(("True", "False"))]
    kinds = ["not"]
    if length >= 3:
        kinds += ["binary", "binary", "parentheses"]
    kind = rng.choice(kinds)
    if kind == "not":
        return ["not", *expression(rng, length - 1)]
    if kind == "parentheses":
        return ["(", *expression(rng, length - 2), ")"]
    left = rng.randint(1, length - 2)
    return [*expression(rng, left), rng.choice(("and", "or")), *expression(rng, length - 1 - left)]


def reduce_once(tokens: list[str], rng: Random, slips: Slips) -> list[str]:
    """The expression after one reduction: innermost parentheses first, then not, and, or, each from the left."""
    if ")" in tokens:
        close = tokens.index(")")
        open_ = max(i for i in range(close) if tokens[i] == "(")
        inner = tokens[open_ + 1 : close]
        if len(inner) == 1:
            return [*tokens[:open_], *inner, *tokens[close + 1 :]]
        return [*tokens[: open_ + 1], *reduce_once(inner, rng, slips), *tokens[close:]]
    literals = ("True", "False")
    for i in range(len(tokens) - 1):
        if tokens[i] == "not" and tokens[i + 1] in literals:
            negated = "False" if tokens[i + 1] == "True" else "True"
            doubled = i > 0 and tokens[i - 1] == "not"
            value = tokens[i + 1] if slips(rng, "boolean.double_not" if doubled else "boolean.not") else negated
            return [*tokens[:i], value, *tokens[i + 2 :]]
    for operator in ("and", "or"):
        if operator in tokens:
            i = tokens.index(operator)
            pair = (tokens[i - 1] == "True", tokens[i + 1] == "True")
            truth = all(pair) if operator == "and" else any(pair)
            if pair[0] != pair[1] and slips(rng, f"boolean.{operator}"):
                truth = not truth
            return [*tokens[: i - 1], str(truth), *tokens[i + 2 :]]
    raise AssertionError(f"nothing to reduce in {tokens}")


def make(rng: Random, level: float | None, slips: Slips, size: int | None = None) -> Example:
    length = size or (REAL_LENGTH if level is None else between(rng, 2, 11, level))
    tokens = expression(rng, length)
    question = " ".join(tokens) + " is"
    lines = [" ".join(tokens)]
    truth = tokens
    while len(truth) > 1:
        truth = reduce_once(truth, rng, NO_SLIPS)
    while len(tokens) > 1:
        tokens = reduce_once(tokens, rng, slips)
        lines.append(" ".join(tokens))
    lines.append(f"So the answer is {tokens[0]}")
    return Example(question, "\n".join(lines), truth[0])
