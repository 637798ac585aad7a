"""Any generator of reasoning-gym with its own scorer; an optional extra.

Splits differ in their seed, so that a question of one is a question of another only where a generator has few.

Source: Stojanovski et al. 2025, arXiv 2505.24760; github.com/open-thought/reasoning-gym, Apache-2.0.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from gpo.errors import ConfigError, MissingDependency, unknown
from gpo.tasks.data import SPLITS, conversation, worked_examples
from gpo.tasks.grading import LONGEST_ANSWER, answer_text, candidates
from gpo.types import Message, Problem, Score, Split

INSTRUCTION = "Think step by step, one step on each line. Then give the answer alone between <answer> and </answer>."


@dataclass(frozen=True)
class ReasoningGym:
    """Questions of one generator. Ids are such as `reasoning_gym/chain_sum/train/17`."""

    generator: str = "chain_sum"
    size: int = 1_000  # questions in each split
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)  # settings of the generator
    instruction: str = INSTRUCTION
    system: str = ""  # stands before all else, as the turn of the system
    examples: str | None = None  # file of worked examples, columns question and response

    def problems(self, split: Split) -> list[Problem]:
        """Raises: MissingDependency without reasoning-gym; ConfigError if it refuses the name or the settings."""
        rows = self._generator(split)
        return [
            Problem(f"reasoning_gym/{self.generator}/{split}/{i}", rows[i]["question"], str(rows[i]["answer"]))
            for i in range(self.size)
        ]

    def prompt(self, problem: Problem) -> list[Message]:
        return conversation(problem.question, self.instruction, worked_examples(self.examples), system=self.system)

    def score(self, problem: Problem, text: str) -> Score:
        """The generator's own score, which may give part of the reward; `right` is the full reward only."""
        answer = _answer(text)
        if answer is None:
            return Score(0.0, "ungradable")
        *_, split, index = problem.id.split("/")
        rows = self._generator(split)
        try:
            value = float(rows.score_answer(answer, rows[int(index)]))
        # Scorers are other people's code that runs on whatever a model wrote.
        except Exception as error:
            return Score(None, "failed", answer, f"{type(error).__name__}: {error}")
        value = min(1.0, max(0.0, value))
        return Score(value, "right" if value == 1.0 else "wrong", answer)

    def _generator(self, split: str) -> Any:
        config = json.dumps(self.config, sort_keys=True)
        return _generator(self.generator, self.size, self.seed + SPLITS.index(split) * 1_000_003, config)


@lru_cache(maxsize=16)
def _generator(name: str, size: int, seed: int, config: str) -> Any:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingDependency(
            "The reasoning_gym task needs reasoning-gym: pip install 'gpo[reasoning-gym]'."
        ) from error
    if name not in DATASETS:
        raise unknown("generator of reasoning-gym", name, DATASETS)
    try:
        return reasoning_gym.create_dataset(name, size=size, seed=seed, **json.loads(config))
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"reasoning-gym refuses the settings {config} of {name!r}: {error}.") from error


def _answer(text: str) -> str | None:
    """What stands in the last pair of answer tags, else after the last mark; answers may have many lines."""
    rest = answer_text(text)
    if rest is None:
        return None
    before, closed, _ = rest.rpartition("</answer>")
    _, opened, answer = before.rpartition("<answer>")
    if closed and opened and len(answer) <= LONGEST_ANSWER:
        return answer.strip() or None
    return next(candidates(rest), "").strip().rstrip(".") or None
