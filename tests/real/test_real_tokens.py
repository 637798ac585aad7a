"""A tokenizer that merges line breaks: what steps are made of is tokens as they were sampled."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from gpo.engines.hf import HFEngine
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.rollout.segmenters import Authors, BlankLine, FixedTokens, Newline, Segmenter, Sentence, pieces
from gpo.tasks.question import Question
from gpo.types import Trajectory

SEGMENTERS = [Newline(), Newline(sentence_tokens=8), Authors(), Sentence(), BlankLine(), FixedTokens(size=5)]
TEXT = "First, add.\n\n2 + 2 = 4. So it is 4.\n\n\nThen double it:\n  4 * 2 = 8!\n\n\n\nThe answer is 8."


@pytest.fixture(scope="module")
def sampled(engine: HFEngine) -> list[Trajectory]:
    task = Question("Count from 1 to 4, and say a short word for each number, on lines of their own.", instruction="")
    [problem] = task.problems("train")
    sampler = Sampler(engine, task, {problem.id: problem}, max_tokens=32, seed=1)
    [group] = sampler([question_start(problem, task, engine.tokenizer)], 6)
    return list(group.trajectories)


def check_steps(segmenter: Segmenter, ids: tuple[int, ...], tokenizer: Any) -> None:
    """Steps joined are the tokens, and each step's text is what its tokens add."""
    ends = segmenter(ids, tokenizer)
    steps = [ids[begin:end] for begin, end in pairwise((0, *ends))]
    assert tuple(token for step in steps for token in step) == ids
    assert all(steps)
    texts = ["".join(pieces(step, tokenizer)) for step in steps]
    assert "".join(texts) == tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("segmenter", SEGMENTERS, ids=repr)
def test_steps_joined_are_the_tokens_that_were_sampled(
    segmenter: Segmenter, sampled: list[Trajectory], engine: HFEngine
) -> None:
    for trajectory in sampled:
        check_steps(segmenter, trajectory.response_ids, engine.tokenizer)
    check_steps(segmenter, (*engine.tokenizer.encode(TEXT), 2), engine.tokenizer)


def test_a_boundary_inside_of_a_token_goes_behind_it(engine: HFEngine) -> None:
    tokenizer = engine.tokenizer
    [merged], [three] = tokenizer.encode("\n\n"), tokenizer.encode("\n\n\n")
    ids = (*tokenizer.encode("a b"), merged, *tokenizer.encode("c d"), three, *tokenizer.encode("e"))
    first, second = ids.index(merged) + 1, ids.index(three) + 1
    for segmenter in (Newline(), Newline(sentence_tokens=1), Sentence(), BlankLine()):
        assert segmenter(ids, tokenizer) == (first, second, len(ids))


def test_the_same_text_in_other_tokens_is_cut_at_its_own_tokens(engine: HFEngine) -> None:
    """A prefix that ends with the merged token would be tokenised again as two when something stands behind it."""
    tokenizer = engine.tokenizer
    [one], [merged] = tokenizer.encode("\n"), tokenizer.encode("\n\n")
    before, behind = tokenizer.encode("a b"), tokenizer.encode("c d")
    once, twice = (*before, merged, *behind), (*before, one, one, *behind)
    assert tokenizer.decode(once) == tokenizer.decode(twice)
    assert tuple(tokenizer.encode(tokenizer.decode(once))) == twice
    assert Newline()(once, tokenizer) == (len(before) + 1, len(once))
    assert Newline()(twice, tokenizer) == (len(before) + 2, len(twice))  # a blank line belongs to the step before it


def test_a_rollout_behind_a_prefix_keeps_the_tokens_of_the_prefix(sampled: list[Trajectory], engine: HFEngine) -> None:
    task = Question("Count from 1 to 4, and say a short word for each number, on lines of their own.", instruction="")
    [problem] = task.problems("train")
    parent = max(sampled, key=lambda each: len(each.step_ends))
    assert len(parent.step_ends) > 2
    start = parent.prefix(2)
    sampler = Sampler(engine, task, {problem.id: problem}, max_tokens=24, seed=2)
    [group] = sampler([start], 4)
    for trajectory in group.trajectories:
        assert trajectory.response_ids[: len(start.prefix_ids)] == parent.response_ids[: parent.step_ends[1]]
        assert trajectory.step_ends[:2] == parent.step_ends[:2]
        check_steps(Newline(), trajectory.response_ids, engine.tokenizer)
