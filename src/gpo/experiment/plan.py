"""What a run will sample, foretold from how long a response is; and a look at a few before it starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from gpo.config.components import made
from gpo.config.run import RunConfig
from gpo.experiment.resources import Resources
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.types import Group, Problem, Split

LOOK_SECONDS = 20.0  # of sampling, about, after the first question
FIRST, EVALUATION = "first rollouts", "evaluation"


def foretell(config: RunConfig, questions: int, tests: int, length: float) -> dict[str, int]:
    """Tokens that a run samples at most, by what they are for: the first rollouts, each arm beyond these, evaluation.

    A control that copies a search samples less.

    Args:
        questions, tests: how many training and test problems there are.
        length: mean tokens of a response.
    """
    asked = min(config.round_problems or questions, questions)
    first = round(asked * config.rollouts * length)
    planned = {FIRST: first} | {arm: config.rounds * round(config.budget * first) - first for arm in config.arms}
    planned[EVALUATION] = round((len(config.arms) + 1) * tests * config.test_samples * length)
    return planned


@dataclass(frozen=True)
class Look:
    """A few responses, and what they tell of a run that is not begun."""

    problems: Mapping[Split, list[Problem]]
    prompt: str  # of the first question, as the model is given it
    groups: list[Group]
    tokens: int
    seconds: float
    truncated: int
    ungradable: int
    planned: Mapping[str, int]  # tokens, as `foretell` says

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def look_ahead(work: Resources, seconds: float = LOOK_SECONDS) -> Look:
    """Sample the first question, and more of them until the time is over. Nothing is written."""
    chosen = work.choose_problems()
    engine, config = work.engine(), work.config
    sampler = Sampler(
        engine,
        work.task,
        {problem.id: problem for problem in chosen["train"]},
        segmenter=made("segmenter", config.segmenter),
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        seed=config.seed,
        stream="look",
    )
    groups: list[Group] = []
    began = time.monotonic()
    for problem in chosen["train"]:
        groups += sampler([question_start(problem, work.task, engine.tokenizer)], config.rollouts)
        if time.monotonic() - began > seconds:
            break
    took = time.monotonic() - began
    count = sum(len(group.trajectories) for group in groups)
    length = sampler.tokens / max(count, 1)
    return Look(
        chosen,
        engine.tokenizer.decode(groups[0].start.prompt_ids),
        groups,
        sampler.tokens,
        max(took, 1e-6),
        sampler.truncated,
        sampler.ungradable,
        foretell(config, len(chosen["train"]), len(chosen["test"]), length),
    )
