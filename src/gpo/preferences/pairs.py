"""Preference pairs: one right and one wrong continuation of the same start.

Token ids go from the engine to the loss unchanged; the text of a pair is for people and for other trainers.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from random import Random
from typing import Any, Literal

from gpo.contracts import Tokenizer
from gpo.errors import DataError
from gpo.rollout.turns import in_turns
from gpo.storage.files import dump, replacing
from gpo.types import (
    Completion,
    Group,
    Pair,
    PairSettings,
    PrefixIn,
    Start,
    StartKey,
    StepScores,
    Trajectory,
    Truncated,
)

DEFAULT = PairSettings()
TEXTS = ("problem_id", "prompt", "prefix", "chosen", "rejected")  # fields of a pair
IDS = ("prompt_ids", "prefix_ids", "chosen_ids", "rejected_ids")


def build_pairs(
    groups: Iterable[Group],
    tokenizer: Tokenizer,
    *,
    settings: PairSettings = DEFAULT,
    scores: Iterable[StepScores] = (),
    stop_ids: frozenset[int] | None = None,
    reuse: bool = True,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """Pairs from every start that has both a right and a wrong continuation; an empty list if no start has.

    Groups of the same start are one, whoever sampled them. Continuations are distinct in token ids.
    A grade that failed is left out. A completion that ran out of tokens is never chosen, and it is rejected
    or left out (`truncated`). The choice depends on `seed` and the starts only. Pairs come in turns: one of each
    problem, then a second of each, so that a cut keeps the balance and siblings are rarely neighbours.

    Args:
        settings: how many, and of what; each continuation of a start is used about equally often.
        scores: estimates of the parents; they put critical starts first within a problem and go to the provenance.
        stop_ids: tokens that end a response, as the engine has them; None: the tokenizer's end of sequence.
        reuse: a trajectory from an earlier start that passes through a later one continues that one too.
        provenance: what every pair shall say of its origin (model, estimator, seeds), as JSON values.
    """
    if stop_ids is None:
        stop_ids = frozenset() if tokenizer.eos_token_id is None else frozenset({tokenizer.eos_token_id})
    groups = list(groups)
    parents = {trajectory.id: trajectory for group in groups for trajectory in group.trajectories}
    by_parent = {score.trajectory_id: score for score in scores}
    reset_to = {
        parents[score.trajectory_id].prefix(score.reset_boundary).key
        for score in by_parent.values()
        if score.reset_boundary is not None and score.trajectory_id in parents
    }
    by_problem: dict[str, list[tuple[bool, list[_Choice]]]] = {}
    for start, trajectories in _by_start(groups, reuse):
        if choices := _choices(start, trajectories, settings=settings, seed=seed):
            by_problem.setdefault(start.problem_id, []).append((start.key in reset_to, choices))
    chosen = []
    for problem_id, starts in by_problem.items():
        Random(f"{seed}/{problem_id}").shuffle(starts)
        starts.sort(key=lambda start: not start[0])
        chosen.append(in_turns([choices for _, choices in starts])[: settings.per_problem])
    texts = _Texts(tokenizer, stop_ids)
    return [
        texts.pair(choice, {**_origin(choice.start, parents, by_parent), **(provenance or {})})
        for choice in in_turns(chosen)[: settings.most]
    ]


def _by_start(groups: Sequence[Group], reuse: bool) -> Iterator[tuple[Start, list[Trajectory]]]:
    """Each distinct start with the trajectories that continue it, re-cut so that their completions begin there."""
    starts: dict[StartKey, Start] = {}
    by_prompt: dict[tuple[str, tuple[int, ...]], tuple[list[Start], list[Trajectory]]] = {}
    for group in groups:
        start = group.start
        of_prompt, trajectories = by_prompt.setdefault((start.problem_id, start.prompt_ids), ([], []))
        if start.key not in starts:
            starts[start.key] = start
            of_prompt.append(start)
        trajectories += group.trajectories
    found: dict[StartKey, list[Trajectory]] = {key: [] for key in starts}
    for of_prompt, trajectories in by_prompt.values():
        sizes = sorted({len(start.prefix_ids) for start in of_prompt})
        places = {}
        for start in of_prompt:
            (digest,) = _digests(start.prefix_ids, [len(start.prefix_ids)])
            places[digest] = found[start.key]
        for trajectory in trajectories:
            own = len(trajectory.start.prefix_ids)
            through = [size for size in sizes if size >= own] if reuse else [own]
            for digest in _digests(trajectory.response_ids, through):
                if digest in places:
                    places[digest].append(trajectory)
    for key, start in starts.items():
        yield start, found[key]


def _digests(ids: Sequence[int], sizes: Sequence[int]) -> Iterator[bytes]:
    """What tells the first `size` ids from any others, for each of the increasing sizes that there are."""
    data, done, state = memoryview(array("q", ids)), 0, blake2b(digest_size=16)
    for size in sizes:
        if size > len(ids):
            return
        state.update(data[done:size])
        done = size
        yield state.digest()


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


@dataclass(frozen=True)
class _Choice:
    """A pair whose texts are not made yet: most choices are left out by a cap, and decoding is what takes long."""

    start: Start
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_id: str
    rejected_id: str


def _choices(start: Start, trajectories: Iterable[Trajectory], *, settings: PairSettings, seed: int) -> list[_Choice]:
    right: dict[tuple[int, ...], str] = {}
    wrong: dict[tuple[int, ...], str] = {}
    for trajectory in trajectories:
        side = _side(trajectory.score.verdict, trajectory.completion, settings.truncated)
        ids = trajectory.response_ids[len(start.prefix_ids) :]
        if side and ids:
            (right if side == "right" else wrong).setdefault(ids, trajectory.id)
    chosen, rejected = list(right), list(wrong)
    if not chosen or not rejected:
        return []
    random = Random(f"{seed}/{start.problem_id}/{start.prefix_ids}")
    random.shuffle(chosen)
    random.shuffle(rejected)
    found = []
    for i in range(min(settings.per_start, max(len(chosen), len(rejected)))):
        good, bad = chosen[i % len(chosen)], rejected[i % len(rejected)]
        found.append(_Choice(start, good, bad, right[good], wrong[bad]))
    return found


@dataclass(frozen=True)
class _Texts:
    """Makes pairs of choices; what several of one start have in common is decoded once."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    heads: dict[int, tuple[str, str]] = field(default_factory=dict)  # prompt and prefix, by object of the start
    known: dict[tuple[int, tuple[int, ...]], str] = field(default_factory=dict)  # by object of the start, and ids

    def pair(self, choice: _Choice, provenance: Mapping[str, Any]) -> Pair:
        start = choice.start
        if id(start) not in self.heads:
            prompt = self.tokenizer.decode(start.prompt_ids, skip_special_tokens=False)
            self.heads[id(start)] = prompt, text_behind(self.tokenizer, start.prompt_ids, start.prefix_ids)
        prompt, prefix = self.heads[id(start)]
        return Pair(
            problem_id=start.problem_id,
            prompt_ids=start.prompt_ids,
            prefix_ids=start.prefix_ids,
            chosen_ids=choice.chosen_ids,
            rejected_ids=choice.rejected_ids,
            prompt=prompt,
            prefix=prefix,
            chosen=self._behind(start, choice.chosen_ids),
            rejected=self._behind(start, choice.rejected_ids),
            provenance={"chosen_id": choice.chosen_id, "rejected_id": choice.rejected_id, **provenance},
        )

    def _behind(self, start: Start, ids: tuple[int, ...]) -> str:
        key = (id(start), ids)
        if key not in self.known:
            self.known[key] = text_behind(self.tokenizer, start.token_ids, without_stop(ids, self.stop_ids))
        return self.known[key]


def _side(verdict: str, completion: Completion, truncated: Truncated) -> Literal["right", "wrong"] | None:
    if verdict == "failed":
        return None
    if completion.finish_reason == "length":
        # A right answer without an end would teach not to stop, a right answer as rejected would teach to be wrong.
        return "wrong" if verdict != "right" and truncated == "rejected" else None
    return "right" if verdict == "right" else "wrong"


def without_stop(ids: tuple[int, ...], stop_ids: frozenset[int]) -> tuple[int, ...]:
    return ids[:-1] if ids and ids[-1] in stop_ids else ids


def text_behind(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> str:
    """The text that `ids` add behind `before`: a tokenizer may drop the space in front of a text's first word."""
    head = tokenizer.decode(before, skip_special_tokens=False)
    whole = tokenizer.decode([*before, *ids], skip_special_tokens=False)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids, skip_special_tokens=False)


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
        **{name: list(getattr(pair, name)) for name in IDS},
        "provenance": dict(pair.provenance),
    }


def from_row(row: Mapping[str, Any]) -> Pair:
    """The pair that `to_row` wrote.

    Raises:
        KeyError, TypeError: the row has not the fields of `to_row`.
    """
    for name in (*TEXTS, "prefix_in"):
        if not isinstance(row[name], str):
            raise TypeError(f"{name} is no text")
    known: dict[str, Any] = {name: row[name] for name in (*TEXTS, "provenance")}
    known |= {name: _token_ids(row[name]) for name in IDS}
    pair = Pair(**known)
    if row["prefix_in"] == "prompt":
        return replace(pair, prompt=pair.prompt.removesuffix(pair.prefix))
    return replace(pair, chosen=pair.chosen.removeprefix(pair.prefix), rejected=pair.rejected.removeprefix(pair.prefix))


def _token_ids(given: list[int]) -> tuple[int, ...]:
    if not isinstance(given, list) or not all(type(token) is int and token >= 0 for token in given):
        raise TypeError("token ids are a list of numbers")
    return tuple(given)


def write_pairs(pairs: Iterable[Pair], path: Path | str, prefix_in: PrefixIn = "prompt") -> None:
    """Write JSON lines, one pair a line; the file is there in whole or not at all."""
    with replacing(Path(path)) as partial, partial.open("wb") as file:
        for pair in pairs:
            file.write(dump(to_row(pair, prefix_in)))


def read_pairs(path: Path | str) -> list[Pair]:
    """Read what `write_pairs` wrote.

    Raises:
        DataError: no such file, or a line that is no pair.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"No pairs at {path}. Build them first.")
    *lines, rest = path.read_bytes().split(b"\n")
    pairs = []
    for number, line in enumerate([*lines, rest] if rest else lines, 1):
        try:
            pairs.append(from_row(json.loads(line)))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            message = f"{path}, line {number}: not a preference pair ({error!r}). Build the pairs again."
            raise DataError(message) from error
    return pairs
