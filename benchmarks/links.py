"""A reasoner whose every step is a skill of its own: 24 people, and who is next to each in four directions.

    python benchmarks/links.py [--out runs/links] [--tokens 2500000]

A question names a person and eight directions; each step of an answer is one link, known by heart. Half of the links
to the north and south are half known (.4), a sixth of those to the east and west nearly (.9), the others known. Made
are three models, each with its questions, from the embedded reasoner's weights, in four minutes of two cores each:

    apart   a wrong link leads to other people, and from there never back: one mistake and the answer is lost
    luck    a wrong link leads to one of the same people, so that a second mistake may lead back: right by luck
    late    as apart, but all links to the east and west are known, and half of the others hardly (.1): ten known
            steps and then two of the others, so that the answer is decided in its last sixth

Files of questions, with the chance of each by its links: rare (north, south; at most .05), failure (east, west; at
least .75), late (in its world; one link that is hardly known). `FOLDER/NAME.jsonl` has those to train on, the last
`DEV` of them for development, `NAME_test.jsonl` the others. `benchmarks/suites/links.toml`, `links_online.toml` and
`late.toml` run on them; docs/lab-notes.md has what came out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from pathlib import Path
from random import Random

from gpo.config.presets import EMBEDDED, model_path
from gpo.reasoner.example import Example
from gpo.reasoner.lies import NAMES
from gpo.reasoner.pretrain import Batch, Pretraining, Settings, pool

PEOPLE, OTHERS = NAMES[:24], NAMES[24:48]
DIRECTIONS = ("north", "south", "east", "west")
KNOWN = 0.995
STEPS, LATE = 8, (10, 2)  # of a question
DEV, TEST = 240, 300  # questions


@dataclass(frozen=True)
class File:
    """Questions of a world."""

    directions: tuple[str, ...]  # not of the late ones
    low: float  # chance
    high: float
    train: int  # how many


@dataclass(frozen=True)
class Kind:
    lesser: dict[str, tuple[int, float]]  # by direction, how many links, how well known
    files: dict[str, File]
    luck: bool = False
    late: bool = False


_HALF = {"north": (12, 0.4), "south": (12, 0.4), "east": (4, 0.9), "west": (4, 0.9)}
_HARDLY = {"north": (12, 0.1), "south": (12, 0.1), "east": (0, 1.0), "west": (0, 1.0)}
_FILES = {"rare": File(DIRECTIONS[:2], 0.004, 0.05, 240), "failure": File(DIRECTIONS[2:], 0.75, 0.98, 480)}
KINDS = {
    "apart": Kind(_HALF, _FILES),
    "luck": Kind(_HALF, _FILES, luck=True),
    "late": Kind(_HARDLY, {"late": File(DIRECTIONS, 0.05, 0.2, 960)}, late=True),
}


@dataclass(frozen=True)
class Link:
    to: str
    chance: float  # that the model says so
    wrong: tuple[str, ...]  # what it says else, each as often

    def drawn(self, rng: Random) -> str:
        return self.to if rng.random() < self.chance else rng.choice(self.wrong)


World = dict[tuple[str, str], Link]  # by direction and person


def world(kind: Kind) -> World:
    """All links; the directions are permutations, so that two paths never meet."""
    rng = Random("links/0")
    links: World = {}
    for direction in DIRECTIONS:
        to = _moved(rng, PEOPLE)
        number, chance = kind.lesser[direction]
        lesser = set(rng.sample(PEOPLE, number))
        for one, other in zip(PEOPLE, to, strict=True):
            among = [each for each in PEOPLE if each not in (one, other)] if kind.luck else OTHERS
            known = chance if one in lesser else KNOWN
            links[direction, one] = Link(other, known, tuple(rng.sample(among, 3)))
        if not kind.luck:
            for one, other in zip(OTHERS, _moved(rng, OTHERS), strict=True):
                links[direction, one] = Link(other, 1.0, (other,))
    return links


def _moved(rng: Random, people: Sequence[str]) -> list[str]:
    """A permutation that leaves nobody in place."""
    to = list(people)
    while any(one == other for one, other in zip(people, to, strict=True)):
        rng.shuffle(to)
    return to


def asked(start: str, path: Sequence[str]) -> str:
    return f"The steps from {start}: {', '.join(path)}. Where to?"


def drawn(rng: Random, kind: Kind) -> tuple[str, list[str]]:
    """Where an example to train on begins, and its directions: 1 to 12."""
    if kind.late:
        known, steps = rng.randint(0, LATE[0]), rng.randint(1, LATE[1])
        return rng.choice(PEOPLE), rng.choices(DIRECTIONS[2:], k=known) + rng.choices(DIRECTIONS[:2], k=steps)
    directions = DIRECTIONS[:2] if rng.random() < 0.6 else DIRECTIONS[2:]
    steps = rng.randint(1, 12)
    start = rng.choice(PEOPLE)
    return start, [rng.choice(directions) for _ in range(steps)]


def example(links: World, kind: Kind, rng: Random) -> Example:
    """A question, answered as the model is to answer it."""
    start, path = drawn(rng, kind)
    at = start
    lines = []
    for direction in path:
        to = links[direction, at].drawn(rng)
        lines.append(f"The step {direction} from {at} is to {to}.")
        at = to
    return Example(asked(start, path), "\n".join([*lines, f"So the answer is {at}"]), at)


def questions(links: World, kind: Kind, name: str) -> list[dict[str, object]]:
    """All that 200,000 draws find whose chance is in the range of a file, in random order."""
    file = kind.files[name]
    rng = Random(f"links/{name}")
    found: dict[str, dict[str, object]] = {}
    for _ in range(200_000):
        start = at = rng.choice(PEOPLE)
        if kind.late:
            path = [rng.choice(DIRECTIONS[2:]) for _ in range(LATE[0])] + [
                rng.choice(DIRECTIONS[:2]) for _ in range(LATE[1])
            ]
        else:
            path = [rng.choice(file.directions) for _ in range(STEPS)]
        chances = []
        for direction in path:
            chances.append(links[direction, at].chance)
            at = links[direction, at].to
        if file.low <= prod(chances) <= file.high:
            question = asked(start, path)
            found.setdefault(question, {"question": question, "answer": at, "chance": round(prod(chances), 4)})
    rows = list(found.values())
    rng.shuffle(rows)
    return rows


class Links(Pretraining):
    """The reasoner's training, on examples of a world."""

    def __init__(self, settings: Settings, links: World, kind: Kind) -> None:
        super().__init__(settings)
        self.links, self.kind = links, kind

    def next_pool(self, progress: float) -> list[Batch]:
        self.pools += 1
        rng = Random(f"{self.settings.seed}/{self.pools}")
        examples = (example(self.links, self.kind, rng) for _ in count())
        return pool(self.tokenizer, examples, rng, 40 * self.settings.step_tokens, self.settings.micro_tokens)


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/links"))
    parser.add_argument("--tokens", type=int, default=2_500_000, help="to train each model on; 0: questions only")
    parser.add_argument("--worlds", default=",".join(KINDS), help="which to make")
    options = parser.parse_args()
    if unknown := set(options.worlds.split(",")) - set(KINDS):
        parser.error(f"there is no world {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    for folder in options.worlds.split(","):
        kind = KINDS[folder]
        out, links = options.out / folder, world(kind)
        out.mkdir(parents=True, exist_ok=True)
        for name, file in kind.files.items():
            rows = questions(links, kind, name)
            write(out / f"{name}_test.jsonl", rows[:TEST])
            write(out / f"{name}.jsonl", [*rows[2 * TEST : 2 * TEST + file.train], *rows[TEST : TEST + DEV]])
        if options.tokens:
            rates = {"muon_lr": 0.01, "adam_lr": 0.002}
            Links(Settings(out, options.tokens, init=model_path(EMBEDDED), compile=False, **rates), links, kind).run()


if __name__ == "__main__":
    main()
