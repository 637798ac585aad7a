"""How fast a run's method trains here, by a few steps on a few responses; nothing is written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from math import nan
from pathlib import Path
from typing import Any, NamedTuple

from gpo.config.components import made, setting_types
from gpo.contracts import Tokenizer
from gpo.errors import naming
from gpo.experiment.resources import Resources
from gpo.rollout.turns import in_turns
from gpo.types import Group, Pair, RoundContext, Score, Start

Ids = tuple[int, ...]

STEPS = 3  # of a trial; the first one is not counted: it warms up


class Trial(NamedTuple):
    """What a few steps have shown."""

    speed: float  # tokens a second that training takes in, context included; NaN where that cannot be told
    steps: int = 0  # that were timed


UNKNOWN = Trial(nan)


def try_training(work: Resources, groups: Sequence[Group], tokenizer: Tokenizer, images: Path | None = None) -> Trial:
    """Train a few steps and throw the model away.

    Pairs fill batches as large as the run's, of different responses: what sequences share is computed once, which
    would make a few look fast. Groups are trained on whole, several times. Which response is called the better one
    does not change the time.

    Args:
        groups: of at least two responses, as `look_ahead` samples them.
        images: directory of the images in the prompts.
    """
    method: Any = made("method", work.config.method, seed=work.config.seed)
    usable = [group for group in groups if len(group.trajectories) > 1]
    if not usable or work.config.launch is not None or getattr(method, "model", None) is not None:
        return UNKNOWN
    pairs = method.trains_on == "pairs"
    few = {"gradient_accumulation": 1, "epochs": 1 if pairs else STEPS, "minibatches": 1, "trackers": ()}
    if changed := {name: few[name] for name in few.keys() & setting_types(type(method)).keys()}:
        method = replace(method, **changed)
    ends: list[float] = []
    context = RoundContext(
        model=work.model,
        reference=work.model,
        temperature=work.config.temperature,
        pairing=work.config.pairs,
        images=images,
        on_step=lambda row: ends.append(time.monotonic()),
    )
    work.engine.make_room()
    with naming(f"The method {type(method).__name__}"):
        if pairs:
            count = STEPS * getattr(method, "batch_size", 1)
            metrics = method.update(_pairs(usable, count, tokenizer), context)
        else:
            metrics = method.update([_half_right(group) for group in usable], context)
    if len(ends) < 2 or "trained_tokens" not in metrics:
        return UNKNOWN
    timed = len(ends) - 1
    tokens = metrics["trained_tokens"] * timed / len(ends)
    return Trial(float(tokens / max(ends[-1] - ends[0], 1e-6)), timed)


def _pairs(groups: Sequence[Group], count: int, tokenizer: Tokenizer) -> list[Pair]:
    """So many pairs of responses to one question, whatever came of them; questions take turns.

    The tokens of each response are rotated, every time it is taken by another number: responses may be alike.
    """
    found: list[Pair] = []
    turn = 0
    while len(found) < count:
        rows = []
        for group in groups:
            size = len(group.trajectories)
            ids = [_rotated(t.completion.token_ids, turn * size + i) for i, t in enumerate(group.trajectories)]
            rows.append([_pair(group.start, *two, tokenizer) for two in zip(ids[::2], ids[1::2], strict=False)])
        found += islice(in_turns(rows), count - len(found))
        turn += 1
    return found


def _pair(start: Start, chosen: Ids, rejected: Ids, tokenizer: Tokenizer) -> Pair:
    parts = (start.prompt_ids, start.prefix_ids, chosen, rejected)
    prompt, prefix, better, worse = map(tokenizer.decode, parts)
    return Pair(start.problem_id, *parts, prompt, prefix, better, worse)


def _rotated(ids: Ids, by: int) -> Ids:
    by %= max(1, len(ids))
    return ids[by:] + ids[:by]


def _half_right(group: Group) -> Group:
    """The same with every other response right: a group of one outcome trains nothing."""
    scores = (Score(1.0, "right"), Score(0.0, "wrong"))
    return replace(group, trajectories=tuple(replace(t, score=scores[i % 2]) for i, t in enumerate(group.trajectories)))
