"""navigate: does a walk return to its starting point? One line an instruction, with the position and the heading."""

from __future__ import annotations

from random import Random

from gpo.reasoner.example import Example, Slips, between

QUESTION = "If you follow these instructions, do you return to the starting point? "
MOVES = {"forward": (0, 1), "backward": (0, -1), "left": (-1, 0), "right": (1, 0)}
HEADINGS = (("north", (0, 1)), ("east", (1, 0)), ("south", (0, -1)), ("west", (-1, 0)))
TURNS = {"Turn right": 1, "Turn around": 2, "Turn left": 3}


def take(count: int, direction: str = "") -> str:
    return f"Take {count} step{'' if count == 1 else 's'}{f' {direction}' if direction else ''}"


def facing_walk(rng: Random, length: int, returns: bool) -> list[str]:
    """Steps in four directions, always facing forward."""
    walk = [(rng.randint(1, 10), rng.choice(list(MOVES))) for _ in range(length)]
    if returns:
        x = sum(count * MOVES[direction][0] for count, direction in walk)
        y = sum(count * MOVES[direction][1] for count, direction in walk)
        for offset, positive, negative in ((x, "left", "right"), (y, "backward", "forward")):
            left = abs(offset)
            while left:
                count = min(left, rng.randint(1, 10))
                walk.insert(rng.randint(0, len(walk)), (count, positive if offset > 0 else negative))
                left -= count
    return [take(count, direction) for count, direction in walk]


def turning_walk(rng: Random, length: int, returns: bool) -> list[str]:
    """Steps straight on, and turns."""
    walk = [rng.choice(list(TURNS)) if rng.random() < 0.38 else take(rng.randint(1, 10)) for _ in range(length)]
    if returns:
        steps = [instruction for instruction in walk if instruction.startswith("Take")] or [take(rng.randint(1, 10))]
        around = ["Turn around"] if rng.random() < 0.7 else ["Turn left", "Turn left"]
        walk = [*steps, *around, *rng.sample(steps, len(steps))]
        if rng.random() < 0.3:
            walk.append(rng.choice(list(TURNS)))
    return walk


def make(rng: Random, level: float | None, slips: Slips, size: int | None = None) -> Example:
    facing = rng.random() < 0.5
    returns = rng.random() < 0.42
    length = size or (rng.randint(2, 7) if level is None else between(rng, 1, 7, level))
    if returns:
        length = max(1, length // 2)
    walk = (facing_walk if facing else turning_walk)(rng, length, returns)
    question = QUESTION + ("Always face forward. " if facing else "") + ". ".join(walk) + ".\nOptions:\n- Yes\n- No"
    lines = []
    written, truth = ([0, 0], 0), ([0, 0], 0)
    for instruction in walk:
        written = follow(*written, instruction, rng, slips)
        truth = follow(*truth, instruction, rng, Slips())
        (x, y), heading = written
        lines.append(f"{instruction}: ({x}, {y})" + ("." if facing else f", facing {HEADINGS[heading][0]}."))
    x, y = written[0]
    verdict = "Yes" if (x, y) == (0, 0) else "No"
    lines.append(f"({x}, {y}) is {'' if verdict == 'Yes' else 'not '}the starting point. So the answer is {verdict}")
    return Example(question, "\n".join(lines), "Yes" if truth[0] == [0, 0] else "No")


def follow(position: list[int], heading: int, instruction: str, rng: Random, slips: Slips) -> tuple[list[int], int]:
    """Position and heading after one instruction."""
    if instruction in TURNS:
        turn = TURNS[instruction]
        if turn == 2 and slips(rng, "navigate.turn_around"):
            turn = rng.choice((1, 3))
        elif turn != 2 and slips(rng, "navigate.turn"):
            turn = 4 - turn
        return position, (heading + turn) % 4
    words = instruction.split()
    count = int(words[1])
    direction = words[3] if len(words) > 3 else ""
    dx, dy = MOVES[direction] if direction else HEADINGS[heading][1]
    if direction in ("left", "right") and slips(rng, "navigate.left_right"):
        dx = -dx
    if not direction and heading >= 2 and slips(rng, "navigate.backwards"):
        dx, dy = -dx, -dy
    return [position[0] + count * dx, position[1] + count * dy], heading
