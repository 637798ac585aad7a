"""Advice for a run: a pilot is sampled into its directory, and what the run takes and gives is told from it."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from gpo.advice.cost import Gpu, Hours, ModelShape, Operations, TrainingMemory, Work, gpu_hours, shape_of
from gpo.advice.expect import Expectation, expect, known_evidence
from gpo.advice.pilot import Pilot, pilot_of
from gpo.advice.work import Training, searches, work_of
from gpo.config.components import Spec
from gpo.config.run import RunConfig, describe
from gpo.errors import ConfigError, DataError
from gpo.experiment.plan import EVALUATION, foretell
from gpo.experiment.questions import questions_of
from gpo.experiment.run import Run
from gpo.experiment.search import locate
from gpo.experiment.stages import ask
from gpo.report.progress import short
from gpo.storage.rounds import RoundState
from gpo.types import ModelRef, Stage

QUESTIONS, SEARCHES = 32, 8  # of a pilot
SHARE = 0.4  # of the budget of its questions, at least, for its searches: few that are cheap would tell of no others
FIRST = 8  # questions before the clock is looked at
SECONDS = 50.0  # after which a pilot's rollouts are not doubled any more, and its searches neither
LEAST = 1.1  # budget as a multiple of the first rollouts
PAPER = 4  # rollouts from every boundary, of the uniform search that others are held against


@dataclass(frozen=True)
class ArmCost:
    """What one arm takes. Operations, memory and hours are None where the model or the GPU is not known."""

    work: Work
    operations: Operations | None
    hours: Hours | None


@dataclass(frozen=True)
class Advice:
    """All that is told."""

    pilot: Pilot
    config: RunConfig  # as advised, with all its arms
    questions: int
    arms: dict[str, ArmCost]
    shape: ModelShape | None
    memory: TrainingMemory | None
    training: Training
    expected: Expectation | None  # None: there are not both kinds of arms to choose from
    arm: str
    command: str
    notes: tuple[str, ...]

    @property
    def uniform(self) -> float:
        """Tokens of a search with four rollouts from every boundary."""
        return PAPER * self.pilot.weight


def plain_arm(config: RunConfig) -> str | None:
    """The first arm that resets nowhere."""
    named = {name: each.name for name, each in config.arms.items() if isinstance(each, Spec)}
    return next((name for name, each in named.items() if each == "none"), None)


def searching_arm(config: RunConfig) -> str | None:
    """The first arm that samples to find its reset."""
    return next((name for name, estimator in config.arms.items() if searches(estimator)), None)


def sample_pilot(
    run: Run, questions: int = QUESTIONS, *, now: Callable[[], float] = time.monotonic
) -> tuple[Pilot, ModelRef]:
    """Rollouts from the first training questions and searches of a few of their trajectories, into the run's directory.

    Also the model that they were sampled from.

    The numbers of both double until there are as many as wished for or the time is over. What is there counts, whoever
    sampled it; a run goes on with all of it.

    Raises:
        DataError: not one response could be graded.
    """
    began, config = now(), run.config
    search = searching_arm(config)
    with run.held():
        state = RoundState.of(run.files, search or next(iter(config.arms)))
        asked = questions_of(run.problems("train"), config.round_problems, 1)[:questions]
        size = min(FIRST, len(asked))
        while len(state.rollouts.read()) < len(asked):
            if len(state.rollouts.read()) < size:
                ask(run, Stage.ROLLOUT, state.rollouts, asked[:size], config.rollouts, None)
            if size == len(asked) or now() - began > SECONDS:
                break
            size = min(2 * size, len(asked))
        wished = 2
        while search is not None and len(state.scores.read()) < wished:
            locate(run, state, wished, share=max(SHARE, run.config.locate_share or 0))
            if len(state.scores.read()) < wished or wished == SEARCHES or now() - began > 2 * SECONDS:
                break
            wished *= 2
        scores = state.scores.read() if search is not None else []
        engine = run.engine()
        found, model = pilot_of(state.rollouts.read(), engine.tokenizer, scores, search, config.pairs), engine.model_ref
        run.engine.release()
    if found is None:
        raise DataError("No response of the pilot could be graded. Look at one with --dry-run, then mend the task.")
    return found, model


def fit_budget(config: RunConfig, pilot: Pilot, tokens: int, available: int) -> RunConfig:
    """The configuration with as many questions as an arm's tokens pay for at its `budget`, and with what is left.

    Args:
        tokens: that an arm may sample in all its rounds.
        available: training questions that the task has.

    Raises:
        ConfigError: they do not pay for the pilot's questions.
    """
    of_question = config.rounds * config.rollouts * pilot.response
    least = len(pilot.asked)
    if config.round_problems is None:
        wished = int(tokens / (config.budget * of_question))
        config = replace(config, problems=max(least, min(wished, available)))
    asked = min(config.round_problems or config.problems, config.problems, available)
    factor = int(100 * tokens / (of_question * asked)) / 100
    if factor < LEAST:
        raise ConfigError(
            f"--budget_tokens {tokens:,} do not pay for {config.rounds} round(s) of {asked} questions: their first "
            f"rollouts alone take {of_question * asked:,.0f}. Give at least {of_question * asked * LEAST:,.0f}."
        )
    return replace(config, budget=factor)


def advise(
    run: Run,
    pilot: Pilot,
    model: ModelRef,
    *,
    budget_tokens: int | None = None,
    gpu: Gpu | None = None,
    directory: str | None = None,
) -> Advice:
    """What a run takes and which of its arms to choose, by its pilot.

    Args:
        model: that the pilot was sampled from.
        budget_tokens: sampled tokens of an arm in all rounds; None: as the configuration says.
        directory: as the user named it.
    """
    config, notes = run.config, list[str]()
    available = len(run.task.problems("train"))
    if budget_tokens is not None:
        config = fit_budget(config, pilot, budget_tokens, available)
    questions = min(config.problems, available)
    training, shape = Training.of(config), shape_of(model)
    arms = {}
    hf = isinstance(config.engine, Spec) and config.engine.name == "hf"
    for name in config.arms:
        work = work_of(config, name, questions, pilot, training)
        done = hours = None
        if shape is not None:
            done = training.operations(shape, work)
            hours = None if gpu is None else gpu_hours(shape, work, done, gpu, bf16=training.bf16, hf=hf)
        arms[name] = ArmCost(work, done, hours)
    memory = None if shape is None else training.memory(shape, pilot)
    if shape is None:
        notes.append("The model is no causal language model of transformers: operations and memory are not known.")
    tests = len(run.problems("test"))
    asked = foretell(config, questions, tests, pilot.response)[EVALUATION] / (1 + len(arms))
    notes.append(f"Evaluation samples {short(asked)} tokens of each model, base included, on top.")
    plain, search = plain_arm(config), searching_arm(config)
    expected, arm = None, search or plain or next(iter(config.arms))
    if plain is not None and search is not None:
        method = str(describe(config)["method"]["name"])
        expected = expect(pilot, training.pairs, known_evidence(), config.by_stratum(search), method)
        arm = search if expected.search else plain
    if gpu is not None and not training.bf16 and shape is not None:
        notes.append(
            "--method.bf16 true trains about 15 times as fast on such a GPU, by its data sheet"
            f"{'; with pairs it was not tried on one since a fault was mended' * training.pairs}."
        )
    return Advice(
        pilot=pilot,
        config=config,
        questions=questions,
        arms=arms,
        shape=shape,
        memory=memory,
        training=training,
        expected=expected,
        arm=arm,
        command=command_of(directory or str(run.files.path), run.config, config, arm),
        notes=tuple(notes),
    )


def command_of(directory: str, before: RunConfig, after: RunConfig, arm: str) -> str:
    """What to type: the directory knows all settings that stay."""
    changed = [] if list(after.arms) == [arm] else ["--arms", arm]
    for name in ("problems", "budget"):
        if getattr(before, name) != getattr(after, name):
            changed += [f"--{name}", f"{getattr(after, name):g}"]
    return shlex.join(["gpo", "run", directory, *changed])
