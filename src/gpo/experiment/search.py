"""The search of a round: which trajectories are looked at, and what that may cost."""

from __future__ import annotations

import logging
from dataclasses import replace

from gpo.contracts import Estimator
from gpo.errors import naming
from gpo.estimators.matched import MatchedRandom
from gpo.estimators.none import NoReset
from gpo.experiment.allocation import rare_outcomes
from gpo.experiment.budget import MANY, next_searches, search_limit, search_weight, to_search
from gpo.experiment.resources import Resources
from gpo.rollout.answers import check_scores
from gpo.storage.rounds import RoundState
from gpo.types import Stage, Trajectory

SEARCH_CHUNK = 16  # rollouts of a chunk for each trajectory that is searched between two writes
SEARCH_FIRST = 256  # the same of the first chunk, which tells what a search costs; then as many as there were before
log = logging.getLogger(__name__)


def locate(work: Resources, state: RoundState, searches: int | None = None, *, share: float | None = None) -> None:
    """Search trajectories for their critical steps until the search's share of the budget is spent.

    Args:
        searches: stop once so many are searched. Those of a pilot are of its questions; the rest follows in order.
        share: of the budget, at most; None: as the run says.

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
    stratum = by_stratum(work, state.arm, estimator)
    candidates = _candidates(work, state, stratum)
    # Only what a buffer keeps is searched twice.
    earlier = tuple(work.files.searched_earlier(state.arm, state.number, work.config.buffer)) if stratum else ()
    share = work.config.locate_share if share is None else share
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
            left=left,
            first=first,
            most=max(first, min(work.config.chunk // SEARCH_CHUNK, len(found))),
        )
        if not batch:
            break
        counts = (len(found), len(candidates), "trajectories", len(batch))
        with work.piece(Stage.LOCATE, state.label, *counts) as report:
            # The number of the first trajectory names the chunk.
            sampler = work.sampler(
                Stage.LOCATE, "train", len(found), state.checkpoint, state.number, state.arm, limit=left
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
        message = (
            "The search of %s may take %d tokens, and one rollout up to %d: nothing is searched. "
            "Raise --locate_share or --budget."
        )
        log.warning(message, label, allowed, most)


def by_stratum(work: Resources, arm: str, estimator: Estimator) -> bool:
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
