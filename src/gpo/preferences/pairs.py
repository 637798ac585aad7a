"""Preference pairs: one right and one wrong continuation of the same start.

Token ids go from the engine to the loss unchanged; the text of a pair is for people and for other trainers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import Any, Literal

from gpo.errors import ConfigError, DataError
from gpo.types import Completion, Group, Pair, PrefixIn, Start, StepScores, Tokenizer, Trajectory, Truncated


def build_pairs(
    groups: Iterable[Group],
    tokenizer: Tokenizer,
    *,
    scores: Iterable[StepScores] = (),
    pairs_per_start: int = 16,
    pairs_per_problem: int | None = 16,
    max_pairs: int | None = None,
    truncated: Truncated = "rejected",
    reuse: bool = True,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """Pairs from every start that has both a right and a wrong continuation; an empty list if no start has.

    Groups of equal prompt and prefix are one start, whoever sampled them. Continuations are distinct in token ids.
    A grade that failed is left out. A completion that ran out of tokens is never chosen, and it is rejected
    or left out (`truncated`). The choice depends on `seed` and the starts only. Pairs come in turns: one of each
    problem, then a second of each, so that a cut keeps the balance and siblings are rarely neighbours.

    Args:
        scores: estimates of the parents; they put critical starts first within a problem and go to the provenance.
        pairs_per_start: at most this many; each continuation is used about equally often.
        pairs_per_problem: at most this many, taken in turns from the problem's starts. None: no cap.
        max_pairs: at most this many in all. None: no cap.
        reuse: a trajectory from an earlier start that passes through a later one continues that one too.
        provenance: what every pair shall say of its origin (model, estimator, seeds), as JSON values.

    Raises:
        ConfigError: a limit below 1.
    """
    limits = {"pairs_per_start": pairs_per_start, "pairs_per_problem": pairs_per_problem, "max_pairs": max_pairs}
    for name, limit in limits.items():
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} must be at least 1, got {limit}.")
    groups = list(groups)
    parents = {trajectory.id: trajectory for group in groups for trajectory in group.trajectories}
    by_parent = {score.trajectory_id: score for score in scores}
    by_problem: dict[str, list[tuple[bool, list[Pair]]]] = {}
    for start, trajectories in _by_start(groups, reuse):
        origin = {**_origin(start, parents, by_parent), **(provenance or {})}
        pairs = _pairs_of_start(
            start, trajectories, tokenizer, limit=pairs_per_start, truncated=truncated, seed=seed, origin=origin
        )
        if pairs:
            critical = origin["boundary"] is not None and origin["boundary"] == origin["reset_boundary"]
            by_problem.setdefault(start.problem_id, []).append((critical, pairs))
    chosen = []
    for problem_id, starts in by_problem.items():
        Random(f"{seed}/{problem_id}").shuffle(starts)
        starts.sort(key=lambda start: not start[0])
        chosen.append(list(_in_turns([pairs for _, pairs in starts]))[:pairs_per_problem])
    return list(_in_turns(chosen))[:max_pairs]


def _by_start(groups: Sequence[Group], reuse: bool) -> Iterator[tuple[Start, list[Trajectory]]]:
    """Each distinct start with the trajectories that continue it, re-cut so that their completions begin there."""
    starts: dict[tuple[str, tuple[int, ...], tuple[int, ...]], Start] = {}
    by_prompt: dict[tuple[str, tuple[int, ...]], list[Trajectory]] = {}
    for group in groups:
        start = group.start
        starts.setdefault((start.problem_id, start.prompt_ids, start.prefix_ids), start)
        by_prompt.setdefault((start.problem_id, start.prompt_ids), []).extend(group.trajectories)
    for (problem_id, prompt_ids, prefix_ids), start in starts.items():
        size = len(prefix_ids)
        found = []
        for trajectory in by_prompt[problem_id, prompt_ids]:
            own = trajectory.start.prefix_ids
            passes = reuse and len(own) < size and trajectory.response_ids[:size] == prefix_ids
            if own == prefix_ids or passes:
                found.append(trajectory)
        yield start, found


def _origin(
    start: Start, parents: Mapping[str, Trajectory], scores: Mapping[str, StepScores]
) -> dict[str, str | int | list[float | None] | None]:
    """Where a start was cut from: parent, boundary, and what the estimator said of the parent."""
    parent = parents.get(start.parent or "")
    score = scores.get(start.parent or "")
    end = len(start.prefix_ids)
    boundary = parent.boundaries.index(end) if parent and end in parent.boundaries else None
    return {
        "parent": start.parent,
        "boundary": boundary if start.prefix_ids else 0,
        "prefix_tokens": end,
        "reset_boundary": score.reset_boundary if score else None,
        "critical_step": score.critical_step if score else None,
        "values": [None if math.isnan(value) else value for value in score.values] if score else None,
    }


def _pairs_of_start(
    start: Start,
    trajectories: Iterable[Trajectory],
    tokenizer: Tokenizer,
    *,
    limit: int,
    truncated: Truncated,
    seed: int,
    origin: Mapping[str, Any],
) -> list[Pair]:
    right: dict[tuple[int, ...], str] = {}
    wrong: dict[tuple[int, ...], str] = {}
    for trajectory in trajectories:
        side = _side(trajectory.score.verdict, trajectory.completion, truncated)
        ids = trajectory.response_ids[len(start.prefix_ids) :]
        if side and ids:
            (right if side == "right" else wrong).setdefault(ids, trajectory.id)
    chosen, rejected = list(right), list(wrong)
    if not chosen or not rejected:
        return []
    random = Random(f"{seed}/{start.problem_id}/{start.prefix_ids}")
    random.shuffle(chosen)
    random.shuffle(rejected)
    before = start.token_ids
    texts = {ids: _text(tokenizer, before, _without_eos(ids, tokenizer)) for ids in (*chosen, *rejected)}
    prompt = tokenizer.decode(start.prompt_ids, skip_special_tokens=False)
    prefix = _text(tokenizer, start.prompt_ids, start.prefix_ids)
    pairs = []
    for i in range(min(limit, max(len(chosen), len(rejected)))):
        good, bad = chosen[i % len(chosen)], rejected[i % len(rejected)]
        pairs.append(
            Pair(
                problem_id=start.problem_id,
                prompt_ids=start.prompt_ids,
                prefix_ids=start.prefix_ids,
                chosen_ids=good,
                rejected_ids=bad,
                prompt=prompt,
                prefix=prefix,
                chosen=texts[good],
                rejected=texts[bad],
                provenance={"chosen_id": right[good], "rejected_id": wrong[bad], **origin},
            )
        )
    return pairs


def _side(verdict: str, completion: Completion, truncated: Truncated) -> Literal["right", "wrong"] | None:
    if verdict == "failed":
        return None
    if completion.finish_reason == "length":
        # A right answer without an end would teach not to stop, a right answer as rejected would teach to be wrong.
        return "wrong" if verdict != "right" and truncated == "rejected" else None
    return "right" if verdict == "right" else "wrong"


def _without_eos(ids: tuple[int, ...], tokenizer: Tokenizer) -> tuple[int, ...]:
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _text(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add behind `before`: a tokenizer may drop the space in front of a text's first word."""
    head = tokenizer.decode(before, skip_special_tokens=False)
    whole = tokenizer.decode([*before, *ids], skip_special_tokens=False)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids, skip_special_tokens=False)


def _in_turns(rows: Iterable[Sequence[Pair]]) -> Iterator[Pair]:
    for turn in zip_longest(*rows):
        yield from (pair for pair in turn if pair is not None)


def to_row(pair: Pair, prefix_in: PrefixIn = "prompt") -> dict[str, Any]:
    """A JSON row: our ids, and the standard text columns `prompt`, `chosen` and `rejected` of TRL.

    The ids stay apart whatever `prefix_in` says, which is about the text columns only.
    """
    in_prompt = prefix_in == "prompt"
    return {
        "problem_id": pair.problem_id,
        "prompt": pair.prompt + pair.prefix if in_prompt else pair.prompt,
        "chosen": pair.chosen if in_prompt else pair.prefix + pair.chosen,
        "rejected": pair.rejected if in_prompt else pair.prefix + pair.rejected,
        "prefix": pair.prefix,
        "prefix_in": prefix_in,
        "prompt_ids": list(pair.prompt_ids),
        "prefix_ids": list(pair.prefix_ids),
        "chosen_ids": list(pair.chosen_ids),
        "rejected_ids": list(pair.rejected_ids),
        "provenance": dict(pair.provenance),
    }


def from_row(row: Mapping[str, Any]) -> Pair:
    """The pair that `to_row` wrote.

    Raises:
        KeyError, TypeError: the row has not the fields of `to_row`.
    """
    pair = Pair(
        problem_id=row["problem_id"],
        prompt_ids=tuple(row["prompt_ids"]),
        prefix_ids=tuple(row["prefix_ids"]),
        chosen_ids=tuple(row["chosen_ids"]),
        rejected_ids=tuple(row["rejected_ids"]),
        prompt=row["prompt"],
        prefix=row["prefix"],
        chosen=row["chosen"],
        rejected=row["rejected"],
        provenance=row["provenance"],
    )
    if row["prefix_in"] == "prompt":
        return replace(pair, prompt=pair.prompt.removesuffix(pair.prefix))
    return replace(pair, chosen=pair.chosen.removeprefix(pair.prefix), rejected=pair.rejected.removeprefix(pair.prefix))


def write_pairs(pairs: Iterable[Pair], path: Path, prefix_in: PrefixIn = "prompt") -> None:
    """Write JSON lines, one pair a line; the file is there in whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(
        "".join(json.dumps(to_row(pair, prefix_in), ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8"
    )
    partial.replace(path)


def read_pairs(path: Path) -> list[Pair]:
    """Read what `write_pairs` wrote.

    Raises:
        DataError: no such file, or a line that is no pair.
    """
    if not path.is_file():
        raise DataError(f"No pairs at {path}. Build them first.")
    pairs = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                pairs.append(from_row(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                message = f"{path}, line {number}: not a preference pair ({error!r}). Build the pairs again."
                raise DataError(message) from error
    return pairs
