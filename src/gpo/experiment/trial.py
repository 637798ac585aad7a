"""How fast a run's method trains here, by a few steps on a few responses; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, cycle, islice
from math import nan
from typing import Any

from gpo.config.components import made, setting_types
from gpo.errors import naming
from gpo.experiment.resources import Resources
from gpo.types import Group, Pair, RoundContext, Score, Trajectory

STEPS = 3  # of a trial; the first one is not counted: it warms up


def training_speed(work: Resources, groups: Sequence[Group]) -> float:
    """Tokens a second that training takes in, context included; NaN where that cannot be told.

    Batches are as large as the run's, but for one that is accumulated. Which response is called the better one does
    not change the time; the model that is trained is thrown away.

    Args:
        groups: of at least two responses, as `look_ahead` samples them.
    """
    method: Any = made("method", work.config.method)
    once: dict[str, int] = {
        name: 1 for name in ("gradient_accumulation", "epochs") if name in setting_types(type(method))
    }
    if method.trains_on == "groups" and "minibatches" in setting_types(type(method)):
        once["minibatches"] = STEPS
    method = replace(method, **once)
    usable = [group for group in groups if len(group.trajectories) > 1]
    if not usable or work.config.launch is not None:
        return nan
    ends: list[float] = []
    context = RoundContext(
        model=work.model,
        reference=work.model,
        temperature=work.config.temperature,
        pairing=work.config.pairs,
        images=work.files.images,
        on_step=lambda row: ends.append(time.monotonic()),
    )
    work.make_room()
    with naming(f"The method {type(method).__name__}"):
        if method.trains_on == "pairs":
            metrics = method.update(_pairs(usable, STEPS * getattr(method, "batch_size", 1)), context)
        else:
            metrics = method.update([_half_right(group) for group in usable], context)
    if len(ends) < 2 or "trained_tokens" not in metrics:
        return nan
    of_step = metrics["trained_tokens"] / len(ends)
    return float(of_step * (len(ends) - 1) / max(ends[-1] - ends[0], 1e-6))


def _pairs(groups: Sequence[Group], count: int) -> list[Pair]:
    """So many pairs of responses to one question, whatever came of them."""
    both = [pair for group in groups for pair in combinations(group.trajectories, 2)]
    return [_pair(*pair) for pair in islice(cycle(both), count)]


def _pair(one: Trajectory, other: Trajectory) -> Pair:
    start, ids = one.start, (one.completion.token_ids, other.completion.token_ids)
    return Pair(
        start.problem_id, start.prompt_ids, start.prefix_ids, *ids, prompt="", prefix="", chosen="", rejected=""
    )


def _half_right(group: Group) -> Group:
    """The same with every other response right: a group of one outcome trains nothing."""
    scored = (
        replace(t, score=Score(float(i % 2), "right" if i % 2 else "wrong")) for i, t in enumerate(group.trajectories)
    )
    return replace(group, trajectories=tuple(scored))
