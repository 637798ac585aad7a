"""What a run will sample, foretold from how long a response is; and a look at a few before it starts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpo.config.components import made
from gpo.config.run import RunConfig
from gpo.experiment.questions import choose_problems
from gpo.experiment.resources import Resources
from gpo.images.tokenizer import keep_images
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
    speed: float  # tokens a second of the largest call; 0: no question left room for an answer
    truncated: int
    ungradable: int
    planned: Mapping[str, int]  # tokens, as `foretell` says


def look_ahead(work: Resources, seconds: float = LOOK_SECONDS, images: Path | None = None) -> Look:
    """Sample the first question, then twice as many each time until the time is over. The run writes nothing.

    Args:
        images: where images that prompts show are kept; None: in memory.
    """
    chosen = choose_problems(work.task, work.config)
    engine, config = work.engine(), work.config
    if images is not None:
        keep_images(engine.tokenizer, images)
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
    # A step of few rows takes as long as one of many.
    groups: list[Group] = []
    calls: list[tuple[int, float]] = []  # tokens and seconds
    began, problems, most = time.monotonic(), chosen["train"], max(1, config.chunk // config.rollouts)
    while len(groups) < len(problems) and (not calls or time.monotonic() - began < seconds):
        called, had = time.monotonic(), sampler.tokens
        batch = problems[len(groups) : len(groups) + min(2 ** len(calls), most)]
        groups += sampler([question_start(problem, work.task, engine.tokenizer) for problem in batch], config.rollouts)
        calls.append((sampler.tokens - had, time.monotonic() - called))
    tokens, took = max(calls)
    count = sum(len(group.trajectories) for group in groups)
    length = sampler.tokens / max(count, 1)
    return Look(
        chosen,
        engine.tokenizer.decode(groups[0].start.prompt_ids),
        groups,
        sampler.tokens,
        tokens / max(took, 1e-6),
        sampler.truncated,
        sampler.ungradable,
        foretell(config, len(chosen["train"]), len(chosen["test"]), length),
    )
