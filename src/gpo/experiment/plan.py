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


def foretell_training(config: RunConfig, questions: int, prompt: float, length: float, *, pairs: bool) -> int:
    """Tokens, context included, that an arm trains on at most, in all rounds but one epoch.

    Rollouts behind a reset are taken to be half as long as those from a question, so that there are twice as many.

    Args:
        questions: how many training problems there are.
        prompt, length: mean tokens of a prompt and of a response.
        pairs: the method trains on preference pairs, else on groups.
    """
    asked = min(config.round_problems or questions, questions)
    if pairs:
        count = asked * (config.pairs.per_problem or config.rollouts * config.pairs.per_start)
        sequences = 2.0 * min(count, count if config.pairs.most is None else config.pairs.most)
    else:
        sequences = asked * config.rollouts * (2 * config.budget - 1)
    return round(config.rounds * sequences * (prompt + length))


@dataclass(frozen=True)
class Look:
    """A few responses, and what they tell of a run that is not begun."""

    problems: Mapping[Split, list[Problem]]
    prompt: str  # of the first question, as the model is given it
    groups: list[Group]
    tokens: int
    speed: float  # tokens a second, of the last and largest call
    truncated: int
    ungradable: int
    planned: Mapping[str, int]  # tokens, as `foretell` says


def look_ahead(work: Resources, seconds: float = LOOK_SECONDS) -> Look:
    """Sample the first question, then twice as many each time until the time is over. Nothing is written."""
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
    # Twice as many questions each time: a step of few rows takes as long as one of many.
    groups: list[Group] = []
    began, size, problems = time.monotonic(), 1, chosen["train"]
    while True:
        called, had = time.monotonic(), sampler.tokens
        batch = problems[len(groups) : len(groups) + size]
        groups += sampler([question_start(problem, work.task, engine.tokenizer) for problem in batch], config.rollouts)
        now = time.monotonic()
        speed, size = (sampler.tokens - had) / max(now - called, 1e-6), min(2 * size, config.chunk // config.rollouts)
        if now - began > seconds or len(groups) == len(problems):
            break
    count = sum(len(group.trajectories) for group in groups)
    length = sampler.tokens / max(count, 1)
    return Look(
        chosen,
        engine.tokenizer.decode(groups[0].start.prompt_ids),
        groups,
        sampler.tokens,
        speed,
        sampler.truncated,
        sampler.ungradable,
        foretell(config, len(chosen["train"]), len(chosen["test"]), length),
    )
