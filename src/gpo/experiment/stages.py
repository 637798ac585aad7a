"""The stages of a round that sample, and the pairs that are built of it.

Each does what is left of it on a `RoundState`. What it decides is a function of the rows that are there (`budget`), so
that a run that was killed decides the same again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpo import __version__
from gpo.contracts import Estimator
from gpo.errors import DataError, naming
from gpo.estimators.matched import MatchedRandom
from gpo.estimators.none import NoReset
from gpo.experiment.allocation import by_worth, outcomes, rare_outcomes, tokens_for_resets
from gpo.experiment.budget import (
    expected_lengths,
    next_chunk,
    next_searches,
    reset_starts,
    rollouts_from,
    round_robin,
    search_limit,
    search_weight,
    to_search,
)
from gpo.experiment.questions import questions_of
from gpo.experiment.resources import Resources
from gpo.experiment.training import training_groups
from gpo.preferences.credit import as_meant
from gpo.preferences.dataset import write_dataset
from gpo.preferences.pairs import build_pairs, read_pairs, write_pairs
from gpo.preferences.step_pairs import build_step_pairs
from gpo.rollout.answers import check_scores, refuse_a_broken_grader
from gpo.rollout.prompting import question_start
from gpo.storage.chunks import Chunks
from gpo.storage.directory import answers_of
from gpo.storage.rounds import RoundState
from gpo.types import Group, Pair, Problem, Split, Stage, Start, StartKey, Trajectory, tokens_of

MANY = 0.2  # of rollouts that were cut off, for a warning
# Starts and their rollouts in the order in which they are due, by the expected lengths of rollouts from them and the
# groups that there are from these starts.
Turns = Callable[[Sequence[Start], Mapping[StartKey, float], Sequence[Group]], Iterator[tuple[Start, int]]]
SEARCH_CHUNK = 16  # rollouts of a chunk for each trajectory that is searched between two writes
SEARCH_FIRST = 256  # the same of the first chunk, which tells what a search costs; then as many as there were before
log = logging.getLogger(__name__)


def rollout(work: Resources, state: RoundState) -> None:
    """Rollouts from the questions of a round; those of the first round are the same for all arms."""
    problems = questions_of(work.problems("train"), work.config.round_problems, state.number)
    shared = state.number == 1
    began = bool(state.rollouts.read())
    ask(work, Stage.ROLLOUT, state.rollouts, problems, work.config.rollouts, None if shared else state)
    if shared and not began:
        _warn_of_outcomes(state.rollouts.read(), work.config.max_tokens)


def evaluate(work: Resources, name: str, checkpoint: Path | None) -> None:
    """Answers of a model to the test questions. All models are asked on the same random numbers."""
    problems, n = work.problems("test"), work.config.test_samples
    ask(work, Stage.EVALUATE, work.files.evaluation(name), problems, n, None, name, checkpoint)


def ask(
    work: Resources,
    stage: Stage,
    file: Chunks[Group],
    problems: Sequence[Problem],
    n: int,
    state: RoundState | None,
    label: str | None = None,
    checkpoint: Path | None = None,
) -> None:
    """n rollouts from every question.

    Raises:
        DataError: no answer of the first chunk could be graded, or the file does not fit the questions.
    """
    size = max(1, work.config.chunk // n)
    split: Split = "test" if stage == Stage.EVALUATE else "train"
    if state is not None:
        label, checkpoint = state.label, state.checkpoint
    answers_of(file, problems, n)
    while (done := len(file.read())) < len(problems):
        batch = problems[done : done + size]
        with work.piece(stage, label, done, len(problems), "problems", len(batch)) as report:
            sampler = work.sampler(stage, split, done, checkpoint, number=1 if state is None else state.number)
            new = sampler([question_start(problem, work.task, sampler.engine.tokenizer) for problem in batch], n)
            if not done:
                try:
                    refuse_a_broken_grader(new)
                except DataError:
                    work.forget_problems()
                    raise
            if sampler.skipped:
                message = (
                    "%d of %d questions are too long to leave room for an answer (context %d, max_tokens %d): skipped."
                )
                log.warning(message, sampler.skipped, len(batch), sampler.engine.context_length, sampler.max_tokens)
            file.append(new)
            report(done + len(new), len(problems), "problems", sampler.tokens)


def locate(work: Resources, state: RoundState, searches: int | None = None) -> None:
    """Search trajectories for their critical steps until the search's share of the budget is spent.

    Args:
        searches: stop once so many are searched. Those of a pilot are of its questions; the rest follows in order.

    Raises:
        EngineError: an estimator does not account for what it was given and what it sampled.
    """
    estimator = work.estimator(state.arm, state.checkpoint)
    if isinstance(estimator, MatchedRandom):
        if state.number == 1:
            _copy_search(work, state, estimator)
            return
        estimator = replace(estimator, search=work.estimator(estimator.arm, state.checkpoint))
    if state.resets.read():
        return
    stratum = _by_stratum(work, state.arm, estimator)
    candidates = _candidates(work, state, stratum)
    # Only what a buffer keeps is searched twice.
    earlier = tuple(work.files.searched_earlier(state.arm, state.number, work.config.buffer)) if stratum else ()
    share = work.config.locate_share
    assert share is not None, "the settings of a run are settled"
    share = min(share, 1 - work.config.fresh_least) if stratum else share
    allowed = search_limit(work.allowance(state), state.tokens()[Stage.ROLLOUT], share)
    limit = max(1, allowed)  # so that an estimator asks, and what it asks is withheld
    first = max(2, work.config.chunk // SEARCH_FIRST)
    began, withheld, sampled, cut = len(state.scores.read()), 0, 0, 0
    while True:
        found = state.scores.read()
        spent = sum(score.tokens for score in found)
        if withheld or (searches is not None and len(found) >= searches):
            break
        left = limit - spent
        if spent and left < work.config.max_tokens and left < work.engine(state.checkpoint).context_length:
            break  # one more rollout might not fit
        known = {score.trajectory_id for score in found}
        batch = next_searches(
            [trajectory for trajectory in candidates if trajectory.id not in known],
            weight=sum(search_weight(trajectory) for trajectory in candidates if trajectory.id in known),
            spent=spent,
            left=limit - spent,
            first=first,
            most=max(first, min(work.config.chunk // SEARCH_CHUNK, len(found))),
        )
        if not batch:
            break
        counts = (len(found), len(candidates), "trajectories", len(batch))
        with work.piece(Stage.LOCATE, state.label, *counts) as report:
            # The number of the first trajectory names the chunk.
            sampler = work.sampler(
                Stage.LOCATE, "train", len(found), state.checkpoint, state.number, state.arm, limit=limit - spent
            )
            name = f"The estimator {type(estimator).__name__}"
            with naming(name):
                new = estimator(batch, sampler, replace(state.evidence(), earlier=earlier))
                check_scores(name, new, batch, sampler.tokens)
            sampled, cut = sampled + sampler.sampled, cut + sampler.truncated
            if withheld := sampler.withheld:  # what the limit left without a rollout is not searched
                new = [score for score in new if score.tokens]
            if new:
                state.scores.append(new)
            done, spent = len(found) + len(new), spent + sampler.tokens
            # In trajectories, of as many as the budget is expected to pay for.
            paid = round(limit * done / spent) if spent else len(candidates)
            report(done, min(max(done + 1, paid), len(candidates)), "trajectories", sampler.tokens)
    _warn_of_search(work, state.label, sampled, cut, allowed if withheld and not spent and share > 0 else None)
    if len(found) > began and searches is None:
        work.teller.step(Stage.LOCATE, state.label, len(found), len(found), "trajectories")


def _warn_of_search(work: Resources, label: str, sampled: int, cut: int, allowed: int | None) -> None:
    """Of values that are too low, and of a search that its limit (None: there was enough) does not let begin."""
    most = work.config.max_tokens
    if cut and cut >= MANY * sampled:
        message = (
            "%d of %d rollouts of the search of %s were cut off: a response has %d tokens at most, prefix included, so "
            "that values behind long prefixes are too low. Raise --max_tokens."
        )
        log.warning(message, cut, sampled, label, most)
    if allowed is not None:
        message = "The search of %s may take %d tokens, and one rollout up to %d: nothing is searched. Raise --budget."
        log.warning(message, label, allowed, most)


def reset(work: Resources, state: RoundState) -> None:
    """Rollouts from the reset boundaries, in turns, until the arm's budget is spent.

    An arm whose estimator resets nowhere spends its budget on the questions, as every arm does with what
    `reset_fraction` and `reset_turns` leave.
    """
    found = work.files.searched(state.arm, state.number)
    first, spent, searched = state.rollouts.read(), state.tokens(), state.searched()
    known = [*first, *searched]
    questions = [group.start for group in first]
    starts = reset_starts([score for _, score in found], [trajectory for trajectory, _ in found]) or questions
    estimator = work.estimator(state.arm, state.checkpoint)
    if found and not isinstance(estimator, NoReset) and not any(start.prefix_ids for start in starts):
        message = "Every step that %s found is the first one: its resets are the questions again, as in plain sampling."
        log.warning(message, state.label)
    even = isinstance(estimator, NoReset) and estimator.order == "even"
    if even and {start.key for start in starts} <= {start.key for start in questions}:
        starts = questions  # as they come, and not with mixed outcomes first, as they are looked at
    budget = work.allowance(state)
    left = budget - spent[Stage.ROLLOUT] - spent[Stage.LOCATE]
    at_most = min(left, round(work.config.reset_fraction * budget))
    n = work.config.reset_rollouts
    if _by_stratum(work, state.arm, estimator):
        inside = [start for start in starts if start.prefix_ids]
        lengths = expected_lengths([*inside, *questions], known)
        at_most = min(at_most, round((1 - work.config.fresh_least) * budget) - spent[Stage.LOCATE])
        # What is not trained on tells how often a start is solved, and teaches nothing.
        trained, untrained = (known, []) if work.config.reuse else (first, searched)
        share = tokens_for_resets(
            inside, questions, lengths, outcomes(trained, untrained), left=left, n=n, at_most=at_most
        )

        def worth(before: Sequence[Group]) -> Turns:
            return lambda starts, lengths, groups: by_worth(
                starts, n, lengths, outcomes([*trained, *before, *groups], untrained)
            )

        fill(work, state, Stage.RESET, state.resets, inside, share, known, worth([]))
        resets = state.resets.read()
        more = left - tokens_of(resets)
        fill(work, state, Stage.MORE, state.more, questions, more, [*known, *resets], worth(resets))
        return
    # What the search sampled from a reset start is trained on, so that the start needs less.
    had = rollouts_from(searched) if work.config.reuse else {}
    turns = work.config.reset_turns or 0 if any(start.prefix_ids for start in starts) else 0

    def even_turns(had: Mapping[StartKey, int], turns: int) -> Turns:
        return lambda starts, lengths, groups: round_robin(starts, n, done=len(groups), had=had, turns=turns)

    fill(work, state, Stage.RESET, state.resets, starts, at_most, known, even_turns(had, turns))
    if work.config.reset_fraction < 1 or turns:
        resets = state.resets.read()
        more = left - tokens_of(resets)
        fill(work, state, Stage.MORE, state.more, questions, more, [*known, *resets], even_turns({}, 0))


def fill(
    work: Resources,
    state: RoundState,
    stage: Stage,
    file: Chunks[Group],
    starts: Sequence[Start],
    budget: int,
    known: Sequence[Group],
    turns: Turns,
) -> None:
    """Rollouts from these starts, in the order of their turns, until the tokens of a budget are spent."""
    most = max(1, work.config.chunk // work.config.reset_rollouts)
    began = len(file.read())
    while True:
        groups = file.read()
        empty = {group.start.key for group in groups if not tokens_of([group])}
        usable = [start for start in starts if start.key not in empty]
        lengths = expected_lengths(usable, [*known, *groups])
        left = budget - tokens_of(groups)
        due = turns(usable, lengths, [group for group in groups if group.start.key not in empty])
        batch, n = next_chunk(due, lengths, left=left, most=most)
        if not batch:
            break
        expected = round(sum(n * lengths[start.key] for start in batch))
        with work.piece(Stage.RESET, state.label, budget - left, budget, "tokens", expected) as report:
            sampler = work.sampler(stage, "train", len(groups), state.checkpoint, state.number, state.arm)
            file.append(sampler(batch, n))
            report(min(budget - left + sampler.tokens, budget), budget, "tokens", sampler.tokens)
    if len(groups) > began:
        work.teller.step(Stage.RESET, state.label, budget, budget, "tokens")


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
            groups = training_groups(work, state)
            if work.config.credit == "tail":
                pairs = build_pairs(
                    groups,
                    engine.tokenizer,
                    settings=pairing,
                    scores=state.scores.read(),
                    stop_ids=engine.stop_ids,
                    seed=seed,
                    provenance=origin,
                )
            else:
                pairs = build_step_pairs(
                    groups,
                    engine.tokenizer,
                    stop_ids=engine.stop_ids,
                    starts_only=work.config.credit == "step",
                    settings=pairing,
                    wording=as_meant(work.meaning, engine.tokenizer),
                    seed=seed,
                    provenance=origin,
                )
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


def _by_stratum(work: Resources, arm: str, estimator: Estimator) -> bool:
    """An arm that resets nowhere samples the questions evenly all the same: it is the baseline."""
    return work.config.by_stratum(arm) and not isinstance(estimator, NoReset)


def _candidates(work: Resources, state: RoundState, stratum: bool) -> list[Trajectory]:
    """What a search may look at, in its order; the buffer's trajectories behind those of this round."""
    most = work.config.locate_per_problem
    if not stratum:
        return to_search(state.rollouts.read(), most)
    files = [state.rollouts, *work.files.earlier(state.arm, state.number, work.config.buffer)]
    return rare_outcomes([group for file in files for group in file.read()], most)


def _copy_search(work: Resources, state: RoundState, control: MatchedRandom) -> None:
    """The matched control searches what its arm does, at the same price, and resets to other steps."""
    source = RoundState.of(work.files, control.arm)
    locate(work, source)
    if scores := source.scores.read()[len(state.scores.read()) :]:
        trajectories = {t.id: t for group in state.rollouts.read() for t in group.trajectories}
        state.scores.append([control.choose(score, trajectories[score.trajectory_id]) for score in scores])


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
