"""The embedded reasoner's task: generated questions to train on, real BBH questions to report on.

A row of `navigate`, in the wording of BIG-Bench Hard:

    question  If you follow these instructions, do you return to the starting point? Turn around. Take 8 steps. ...
              Options:
              - Yes
              - No
    answer    No
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from gpo.errors import ConfigError, DataError, unknown
from gpo.reasoner.families import FAMILIES, SIZES, generate, question_hash
from gpo.tasks.bbh import published
from gpo.tasks.data import SPLITS, names, split_by
from gpo.tasks.grading import score_bbh
from gpo.types import Message, Problem, Score, Split


@dataclass(frozen=True)
class Generated:
    """Nine sub-tasks of BBH; train and dev questions are generated, never one of the real ones, none in two splits.

    The test split is the real questions. Where neither a data folder nor the hub has them it is generated too;
    `metadata["source"]` of a problem says which it is ("bbh" or "generated"). With `sizes` all questions are
    generated, those of the test too; `metadata["size"]` is a question's own, and its text decides which split has it.
    """

    subtasks: str | Sequence[str] = tuple(FAMILIES)  # names, or one string of names separated by commas
    path: str | None = None  # folder with bbh/SUBTASK.json; None: GPO_DATA, then the hub
    train_problems: int = 250  # of each sub-task
    dev_problems: int = 100
    test_problems: int = 250  # where they must be generated
    sizes: str | None = None  # instead of sub-tasks, such as "web_of_lies 8-16, dyck_languages 30-90"
    seed: int = 0

    def __post_init__(self) -> None:
        self._sizes()
        for name in self._names():
            if name not in FAMILIES:
                raise unknown("sub-task", name, FAMILIES)

    def problems(self, split: Split) -> list[Problem]:
        """Raises: DataError if `path` is given and has no questions."""
        if self.sizes is not None or split != "test":
            return self._generated(split)
        try:
            return [problem for name in self._names() for problem in published(name, self.path, source="bbh")]
        except DataError:
            if self.path is not None:
                raise
            return self._generated("test")

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        return score_bbh(problem, text)

    def _names(self) -> list[str]:
        return list(names(self.subtasks) if self.sizes is None else self._sizes())

    def _sizes(self) -> dict[str, range]:
        """What `sizes` says. Raises: ConfigError if it says nothing that a family has."""
        found = {}
        for part in self.sizes.split(",") if self.sizes is not None else ():
            name, _, size = part.strip().partition(" ")
            if name not in SIZES:
                raise unknown("sub-task", name, SIZES)
            unit, smallest, largest = SIZES[name]
            first, _, last = size.strip().partition("-")
            try:
                found[name] = range(int(first), int(last or first) + 1)
            except ValueError:
                found[name] = range(0)
            if not found[name] or found[name][0] < smallest or found[name][-1] > largest:
                raise ConfigError(
                    f"sizes has {part.strip()!r}, expected a name and {unit} from {smallest} to {largest}, such as "
                    f'"{name} {smallest}-{largest}".'
                )
        return found

    def _generated(self, split: Split) -> list[Problem]:
        return [problem for name in self._names() for problem in self._of(name, split)]

    def _of(self, name: str, split: Split) -> list[Problem]:
        """The generated questions of a sub-task, none of them in a split before this one."""
        count = {"train": self.train_problems, "dev": self.dev_problems, "test": self.test_problems}[split]
        sizes = self._sizes().get(name)
        before = SPLITS[: SPLITS.index(split)] if sizes is None else ()
        seen = {problem.question for other in before for problem in self._of(name, other)}
        problems: list[Problem] = []
        rng = Random(f"{self.seed}/{split}/{name}{'' if sizes is None else f'/{sizes}'}")
        tries = 0
        while len(problems) < count and tries < 80 * count:
            tries += 1
            size = rng.choice(sizes) if sizes is not None else None
            example = generate(name, rng, size=size)
            # With sizes a question is of the same split whatever the seed.
            elsewhere = size is not None and split_by(int(question_hash(example.question), 16)) != split
            if example.question in seen or elsewhere:
                continue
            metadata = {"subtask": name, "source": "generated"} | ({} if size is None else {"size": size})
            problems.append(Problem(f"{split}/{name}/{len(problems)}", example.question, example.answer, metadata))
            seen.add(example.question)
        return problems
