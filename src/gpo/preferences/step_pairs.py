"""Preference pairs of single steps: two ways to go on from one prefix, ordered by all rollouts that took them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from random import Random
from typing import Any

from gpo.preferences.credit import Preference, StepTree, Wording, as_written, grow, preferences
from gpo.types import Group, Pair, Tokenizer


def build_step_pairs(
    groups: Iterable[Group],
    tokenizer: Tokenizer,
    *,
    stop_ids: frozenset[int],
    resets_only: bool,
    certainty: float = 0.75,
    strength: float = 2.0,
    per_start: int = 4,
    per_problem: int | None = 16,
    most: int | None = None,
    wording: Wording = as_written,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """Pairs whose completions are one step each; an empty list if no prefix was left in two surely different ways.

    `gpo.preferences.credit` says what a step is worth and when one is better than another. Pairs come in turns: one of
    each problem, then a second of each; within a problem prefixes take turns.

    Args:
        stop_ids: tokens that end a response; the text of a pair leaves out the one that ends its step.
        resets_only: only behind prefixes that a reset or a search has sampled from, else behind every prefix.
        certainty: posterior probability that the chosen step is the better one, at least.
        strength: rollouts of the prefix's own value in the prior of each step.
        per_start, per_problem, most: as in `PairSettings`.
    """
    by_problem: dict[str, list[list[Pair]]] = {}
    for tree in grow(groups, wording).values():
        found = preferences(tree, strength=strength, certainty=certainty, resets_only=resets_only)
        Random(f"{seed}/{tree.problem_id}").shuffle(found)
        for each in found:
            pairs = [_pair(tree, preference, tokenizer, stop_ids, provenance or {}) for preference in each[:per_start]]
            by_problem.setdefault(tree.problem_id, []).append(pairs)
    rows = [list(in_turns(starts))[:per_problem] for starts in by_problem.values()]
    return list(in_turns(rows))[:most]


def in_turns(rows: Iterable[Sequence[Pair]]) -> Iterator[Pair]:
    """The first pair of each row, then the second of each."""
    for turn in zip_longest(*rows):
        yield from (pair for pair in turn if pair is not None)


def _pair(
    tree: StepTree,
    preference: Preference,
    tokenizer: Tokenizer,
    stop_ids: frozenset[int],
    provenance: Mapping[str, Any],
) -> Pair:
    prefix = preference.node.prefix_ids
    before = (*tree.prompt_ids, *prefix)
    chosen, rejected = preference.better, preference.worse

    def text(ids: tuple[int, ...], context: tuple[int, ...]) -> str:
        ids = ids[:-1] if ids and ids[-1] in stop_ids else ids
        head = tokenizer.decode(context, skip_special_tokens=False)
        whole = tokenizer.decode([*context, *ids], skip_special_tokens=False)
        return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(ids, skip_special_tokens=False)

    return Pair(
        problem_id=tree.problem_id,
        prompt_ids=tree.prompt_ids,
        prefix_ids=prefix,
        chosen_ids=chosen.step,
        rejected_ids=rejected.step,
        prompt=tokenizer.decode(tree.prompt_ids, skip_special_tokens=False),
        prefix=text(prefix, tree.prompt_ids),
        chosen=text(chosen.step, before),
        rejected=text(rejected.step, before),
        provenance={
            "boundary": preference.node.depth,
            "prefix_tokens": len(prefix),
            "chosen_value": round(chosen.total / chosen.count, 4),
            "rejected_value": round(rejected.total / rejected.count, 4),
            "chosen_count": chosen.count,
            "rejected_count": rejected.count,
            "certainty": round(preference.certainty, 4),
            **provenance,
        },
    )
