"""dyck_languages: complete a bracket sequence, solved with a stack line by line in the form of BIG-Bench-Mistake."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from gpo.reasoner.example import Example, Slips

PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}
# Quantiles of the input length of the real questions, in symbols.
LENGTHS = (2, 3, 4, 4, 5, 5, 7, 7, 8, 9, 10, 11, 12, 14, 16, 19, 20, 25, 29, 35, 38, 48, 57, 74, 92)
QUESTION = "Complete the rest of the sequence, making sure that the parentheses are closed properly. Input: "


def sequence(rng: Random, length: int) -> list[str]:
    """A random prefix of a balanced sequence that leaves at least one bracket open."""
    stack: list[str] = []
    symbols: list[str] = []
    for position in range(length):
        must_open = not stack or (len(stack) == 1 and position == length - 1)
        opens = must_open or rng.random() < (0.55 if len(stack) < 7 else 0.25)
        if opens:
            stack.append(rng.choice("([{<"))
            symbols.append(stack[-1])
        else:
            symbols.append(PAIRS[stack.pop()])
    return symbols


def make(rng: Random, level: float | None, slips: Slips, size: int | None = None) -> Example:
    if size:
        length = size
    elif level is None:
        i = rng.randrange(len(LENGTHS) - 1)
        length = rng.randint(LENGTHS[i], LENGTHS[i + 1])
    else:
        length = rng.randint(2, 3 + round(57 * level))
    symbols = sequence(rng, length)
    true_stack: list[str] = []
    stack: list[str] = []
    lines = ["We should process each input one by one and keep track of the stack configuration.", "stack: empty"]
    for symbol in symbols:
        if symbol in PAIRS:
            true_stack.append(symbol)
            stack.append(symbol)
        else:
            true_stack.pop()
            deep = "dyck.pop_deep" if len(stack) >= 3 else "dyck.pop"
            if stack and not slips(rng, deep):
                stack.pop()
        lines.append(f"{symbol} ; stack: {' '.join(stack) or 'empty'}")
    question = QUESTION + " ".join(symbols)
    answer = " ".join(PAIRS[symbol] for symbol in reversed(true_stack))
    lines += closing(stack)
    return Example(question, "\n".join(lines), answer)


def closing(stack: Sequence[str]) -> list[str]:
    """The last lines: the stack, and what closes it."""
    if not stack:
        return ["Now, we have reached the end. The final stack is empty.", "So, we need nothing. So the answer is"]
    pops = [f'"{symbol}"' for symbol in reversed(stack)]
    closes = [PAIRS[symbol] for symbol in reversed(stack)]
    left = " ".join(stack)
    needs = ", ".join(f'"{close}"' for close in closes)
    return [
        f'Now, we have reached the end. The final stack is "{left}".',
        f"We will need to pop out {', '.join(pops)} one by one in that order.",
        f"So, we need {needs}. So the answer is {' '.join(closes)}",
    ]
