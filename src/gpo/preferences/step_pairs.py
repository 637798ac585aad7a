"""Preference pairs of single steps: two ways to go on from one prefix, ordered by all rollouts that took them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random
from typing import Any

from gpo.contracts import Tokenizer
from gpo.preferences.credit import Preference, StepTree, Wording, as_written, grow, preferences
from gpo.preferences.pairs import DEFAULT, text_behind, without_stop
from gpo.rollout.turns import in_turns
from gpo.types import Group, Pair, PairSettings


def build_step_pairs(
    groups: Iterable[Group],
    tokenizer: Tokenizer,
    *,
    stop_ids: frozenset[int],
    starts_only: bool,
    settings: PairSettings = DEFAULT,
    wording: Wording = as_written,
    seed: int = 0,
    provenance: Mapping[str, Any] | None = None,
) -> list[Pair]:
    """Pairs whose completions are one step each; an empty list if no prefix was left in two surely different ways.

    `gpo.preferences.credit` says what a step is worth and when one is better than another. Pairs come in turns: one of
    each problem, then a second of each; within a problem prefixes take turns.

    Args:
        stop_ids: tokens that end a response; the text of a pair leaves out the one that ends its step.
        starts_only: only behind prefixes that rollouts were sampled from, else behind every prefix.
        settings: `truncated` has no say here, since only a step is trained on.
    """
    by_problem: dict[str, list[list[Pair]]] = {}
    for tree in grow(groups, wording).values():
        found = preferences(
            tree,
            strength=settings.strength,
            certainty=settings.certainty,
            starts_only=starts_only,
            most=settings.per_start,
        )
        Random(f"{seed}/{tree.problem_id}").shuffle(found)
        for each in found:
            pairs = [_pair(tree, one, tokenizer, stop_ids, provenance or {}) for one in each]
            by_problem.setdefault(tree.problem_id, []).append(pairs)
    rows = [in_turns(starts)[: settings.per_problem] for starts in by_problem.values()]
    return in_turns(rows)[: settings.most]


def _pair(
    tree: StepTree,
    preference: Preference,
    tokenizer: Tokenizer,
    stop_ids: frozenset[int],
    provenance: Mapping[str, Any],
) -> Pair:
    prefix, chosen, rejected = preference.node.prefix_ids, preference.better, preference.worse
    before = (*tree.prompt_ids, *prefix)
    return Pair(
        problem_id=tree.problem_id,
        prompt_ids=tree.prompt_ids,
        prefix_ids=prefix,
        chosen_ids=chosen.step,
        rejected_ids=rejected.step,
        prompt=tokenizer.decode(tree.prompt_ids, skip_special_tokens=False),
        prefix=text_behind(tokenizer, tree.prompt_ids, prefix),
        chosen=text_behind(tokenizer, before, without_stop(chosen.step, stop_ids)),
        rejected=text_behind(tokenizer, before, without_stop(rejected.step, stop_ids)),
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
