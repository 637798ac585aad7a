"""The stages of a round that ask its questions, and the pairs that are built of it.

Each does what is left of it on a `RoundState`. What it decides is a function of the rows that are there (`budget`), so
that a run that was killed decides the same again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpo import __version__
from gpo.errors import BrokenGrader, DataError
from gpo.experiment.budget import MANY
from gpo.experiment.questions import questions_of
from gpo.experiment.resources import Resources
from gpo.experiment.training import training_groups
from gpo.preferences.credit import as_meant
from gpo.preferences.dataset import write_dataset
from gpo.preferences.pairs import build_pairs, read_pairs, write_pairs
from gpo.preferences.step_pairs import build_step_pairs
from gpo.rollout import asking
from gpo.storage.chunks import Chunks
from gpo.storage.rounds import RoundState
from gpo.types import Group, Pair, Problem, Split, Stage

log = logging.getLogger(__name__)


def rollout(work: Resources, state: RoundState) -> None:
    """Rollouts from the questions of a round; those of the first round are the same for all arms."""
    problems = questions_of(work.problems("train"), work.config.round_problems, state.number)
    shared = state.number == 1
    began = bool(state.rollouts.read())
    of_round = () if shared else (state.label, state.checkpoint, state.number)
    ask(work, Stage.ROLLOUT, state.rollouts, problems, work.config.rollouts, *of_round)
    if shared and not began:
        _warn_of_outcomes(state.rollouts.read(), work.config.max_tokens)


def evaluate(work: Resources, name: str, checkpoint: Path | None) -> None:
    """Answers of a model to the test questions. All models are asked on the same random numbers."""
    problems, n = work.problems("test"), work.config.test_samples
    ask(work, Stage.EVALUATE, work.files.evaluation(name), problems, n, name, checkpoint)


def ask(
    work: Resources,
    stage: Stage,
    file: Chunks[Group],
    problems: Sequence[Problem],
    n: int,
    label: str | None = None,
    checkpoint: Path | None = None,
    number: int = 1,
) -> None:
    """n rollouts from every question.

    Raises:
        DataError: no answer of the first chunk could be graded, or the file does not fit the questions.
    """
    split: Split = "test" if stage == Stage.EVALUATE else "train"
    for done, batch in asking.unasked(file, problems, n, work.config.chunk):
        with work.piece(stage, label, done, len(problems), "problems", len(batch)) as report:
            sampler = work.sampler(stage, split, done, checkpoint, number)
            try:
                asking.ask(file, batch, n, sampler)
            except BrokenGrader:
                work.forget_problems()
                raise
            report(done + len(batch), len(problems), "problems", sampler.tokens)


def build(work: Resources, state: RoundState) -> None:
    """Preference pairs of what the arm has sampled in a round, as JSON lines and as a data set with its card."""
    path, dataset = work.files.pairs(state.arm, state.number), work.files.dataset(state.arm, state.number)
    known = _pairs_that_are_there(path)
    if known is not None and dataset.exists():
        return
    with work.piece(Stage.BUILD, state.label) as report:
        pairing, seed = work.config.pairs, work.config.seed
        origin: dict[str, Any] = {
            "model": work.model.name,
            "arm": state.arm,
            "estimator": work.described["arms"][state.arm]["name"],
            "seed": seed,
            "pairing_seed": seed,
        } | ({} if state.number == 1 else {"round": state.number})
        if known is None:
            engine = work.engine(state.checkpoint)
            sampled = training_groups(work, state), engine.tokenizer
            how: dict[str, Any] = {"settings": pairing, "stop_ids": engine.stop_ids, "seed": seed, "provenance": origin}
            if work.config.credit == "tail":
                pairs = build_pairs(*sampled, scores=state.scores.read(), **how)
            else:
                wording, starts_only = as_meant(work.meaning, engine.tokenizer), work.config.credit == "step"
                pairs = build_step_pairs(*sampled, starts_only=starts_only, wording=wording, **how)
            write_pairs(pairs, path, pairing.prefix_in)
        pairs = read_pairs(path)
        about = {"task": work.described["task"]["name"], **origin, **work.described["pairs"], "gpo": __version__}
        write_dataset(pairs, dataset, pairing.prefix_in, seed=seed, about=about)
        report(len(pairs), len(pairs), "pairs", 0)


def _pairs_that_are_there(path: Path) -> list[Pair] | None:
    """Pairs can be made again, so damaged ones are."""
    if not path.exists():
        return None
    try:
        return read_pairs(path)
    except DataError as error:
        log.warning("%s They are built again.", error)
        return None


def _warn_of_outcomes(groups: Sequence[Group], max_tokens: int) -> None:
    """Of first rollouts that teach little: many are cut off or have no answer, or all came out alike."""
    rollouts = [trajectory for group in groups for trajectory in group.trajectories]
    cut = sum(t.completion.finish_reason == "length" for t in rollouts)
    unread = sum(t.score.verdict == "ungradable" for t in rollouts)
    if rollouts and cut >= MANY * len(rollouts):
        message = "%d of %d first rollouts were cut off at %d tokens. Raise --max_tokens."
        log.warning(message, cut, len(rollouts), max_tokens)
    elif rollouts and unread >= len(rollouts) / 2:
        message = "%d of %d first rollouts have no answer that can be read. Ask in another form: docs/models.md."
        log.warning(message, unread, len(rollouts))
    rewards = {t.score.value for t in rollouts if t.score.value is not None}
    if rewards in ({0.0}, {1.0}):
        kind, change = ("wrong", "easier") if rewards == {0.0} else ("right", "harder")
        message = "All %d first rollouts are %s: nothing can be learned from them.%s"
        why = "" if 2 * max(cut, unread) >= len(rollouts) and kind == "wrong" else f" Take {change} questions."
        log.warning(message, len(rollouts), kind, why)
