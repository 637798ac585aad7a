"""A run on toy processes: task and engine of gpo.engines.chain, and a method that needs no gradient."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.storage.files import replacing
from gpo.toy import CHOICE_A, ChainEngine, ChainTask
from gpo.types import Group, Message, ModelRef, Problem, RoundContext, Score, Split


@dataclass(frozen=True)
class ToyTask(ChainTask):
    """Training and test questions are the same processes, of two sub-tasks."""

    def problems(self, split: Split) -> Sequence[Problem]:
        subtasks = ("even", "odd")
        return [
            replace(p, question=f"{split} {p.id}", metadata={"subtask": subtasks[int(p.id) % 2]})
            for p in super().problems(split)
        ]

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question.rpartition(" ")[2]}]


@dataclass
class ToyMethod:
    """Makes a choice more probable the more often right trajectories made it at its decision."""

    trains_on: ClassVar[Literal["groups"]] = "groups"

    strength: float = 3.0
    tells: bool = False  # of the tokens that it trains on
    model: Any = None  # a directory that `save` wrote; None: that of the round, if it is one
    counts: Counter[tuple[str, int, int]] = field(default_factory=Counter, init=False)
    began_with: Any = field(default=None, init=False)

    def update(self, groups: Sequence[Group], context: RoundContext = RoundContext()) -> dict[str, float]:
        self.began_with = self.model or (context.model and context.model.source)
        for group in groups:
            for trajectory in group.trajectories:
                if trajectory.score.right:
                    choices = [token - CHOICE_A for token in trajectory.response_ids if token >= CHOICE_A]
                    self.counts.update((group.start.problem_id, k, choice) for k, choice in enumerate(choices))
        if context.on_step is not None:
            context.on_step({"step": 1, "steps": 1})
        tokens = sum(len(t.completion.token_ids) + 9 * len(g.start.prefix_ids) for g in groups for t in g.trajectories)
        told = {"trained_tokens": float(tokens)}
        return {"steps": 1.0, "counted": float(self.counts.total())} | (told if self.tells else {})

    def save(self, path: Path) -> None:
        processes, engine = [], ChainEngine()
        source = self.began_with
        if isinstance(source, str | Path) and (Path(source) / "chain.json").exists():
            engine.load(ModelRef(str(source), "toy"))
        for number, process in enumerate(engine.processes):
            probabilities = []
            for k, rows in enumerate(process.probabilities):
                total = sum(self.counts[str(number), k, choice] for choice in range(len(rows[0]))) or 1
                weights = [[p * (1 + self.strength * self.counts[str(number), k, c] / total) for c, p in enumerate(row)]
                           for row in rows]  # fmt: skip
                probabilities.append([[w / sum(row) for w in row] for row in weights])
            processes.append({"probabilities": probabilities, "successors": process.successors, "right": process.right})
        with replacing(path) as partial:
            partial.mkdir()
            (partial / "chain.json").write_text(json.dumps(processes))


@dataclass(frozen=True)
class LetterTask:
    """For a language model of single letters: a response is right if its first letter is in the first half."""

    size: int = 6

    def problems(self, split: Split) -> Sequence[Problem]:
        return [Problem(f"{split}{i}", f"{i}+{i}", "abcdefghijklm") for i in range(self.size)]

    def prompt(self, problem: Problem) -> list[Message]:
        return [{"role": "user", "content": problem.question}]

    def score(self, problem: Problem, text: str) -> Score:
        right = text[:1] != "" and text[0] in problem.answer
        return Score(float(right), "right" if right else "wrong", text[:1])


@dataclass(frozen=True)
class EveryLetterIsRight(LetterTask):
    """Nothing can be learned from it."""

    def score(self, problem: Problem, text: str) -> Score:
        return Score(1.0, "right", text[:1])


def toy_config(**changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "task": Spec("task", "toy:ToyTask"),
        "engine": Spec("engine", "gpo.toy:ChainEngine", {"padding": 2}),
        "method": Spec("method", "toy:ToyMethod"),
        "arms": {"plain": "none", "random": "random_matched", "gpo": "monte_carlo"},
        "rollouts": 4,
        "budget": 6.0,
        "locate_share": 0.4,  # more of it and of resets than by default, so that a run of few tokens has some
        "reset_turns": 0,
        "locate_per_problem": 2,
        "reset_rollouts": 4,
        "test_samples": 8,
        "chunk": 16,
    }
    return RunConfig(**settings | changes)
