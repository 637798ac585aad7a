"""Surprisal of the tokens of a step."""

from dataclasses import replace
from math import log

import pytest
from toy_chain import first_rollouts, make_sampler, mistake_chain

from gpo.contracts import Estimator
from gpo.errors import ConfigError, DataError
from gpo.estimators.entropy import Entropy
from gpo.toy import ChainEngine
from gpo.types import Completion

ENGINE = ChainEngine((mistake_chain([0.1, 0.4, 0.2]),))


def test_it_finds_the_least_likely_step_for_nothing() -> None:
    trajectories = first_rollouts(ENGINE, 20, logprobs=True)
    sample = make_sampler(ENGINE)
    scores = Entropy(first_tokens=1)(trajectories, sample)
    surprisal = {"a": (-log(0.9), -log(0.6), -log(0.8)), "b": (-log(0.1), -log(0.4), -log(0.2))}
    for trajectory, score in zip(trajectories, scores, strict=True):
        letters = trajectory.completion.text.split("\n")[:3]
        if "b" not in letters[:2]:  # after a mistake both letters are equally likely
            expected = [surprisal[letter][step] for step, letter in enumerate(letters)]
            assert score.critical_step == score.reset_boundary == expected.index(max(expected))
    assert sample.tokens == 0


def test_all_tokens_of_a_step_count_or_the_first_ones() -> None:
    trajectory = first_rollouts(ENGINE, 1, logprobs=True)[0]
    completion = Completion(trajectory.completion.token_ids, "", "stop", (-1.0, -9.0, -2.0, 0.0, 0.0, 0.0, -1.5, 0.0))
    trajectory = replace(trajectory, completion=completion)
    found = [Entropy(first_tokens=n)([trajectory], make_sampler(ENGINE))[0].critical_step for n in (1, 2, None)]
    assert found == [1, 0, 0]
    longer = replace(trajectory, step_ends=(2, 8))
    late = replace(completion, logprobs=(-1.0, -1.0, -0.5, -0.5, -0.5, 0.0, 0.0, -9.0))
    longer = replace(longer, completion=late)
    found = [Entropy(first_tokens=n)([longer], make_sampler(ENGINE))[0].critical_step for n in (3, None)]
    assert found == [0, 1] == [0, Entropy()([longer], make_sampler(ENGINE))[0].critical_step]


def test_steps_of_a_kept_prefix_are_passed_over() -> None:
    parent = first_rollouts(ENGINE, 1)[0]
    sample = make_sampler(ENGINE, logprobs=True)
    resets = sample([parent.prefix(2)], 10)[0].trajectories
    assert {s.critical_step for s in Entropy()(resets, sample)} == {2}


def test_without_any_choice_nothing_stands_out() -> None:
    sure = ChainEngine((mistake_chain([0.0]),))
    [scores] = Entropy()(first_rollouts(sure, 1, logprobs=True), make_sampler(sure))
    assert (scores.critical_step, scores.reset_boundary) == (None, None)


def test_bad_input_says_what_to_do() -> None:
    with pytest.raises(DataError, match="logprobs=True"):
        Entropy()(first_rollouts(ENGINE, 1), make_sampler(ENGINE))
    with pytest.raises(ConfigError, match="first_tokens=0"):
        Entropy(first_tokens=0)
    assert isinstance(Entropy(), Estimator)
