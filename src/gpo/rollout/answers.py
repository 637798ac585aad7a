"""What an engine, a grader, a segmenter and an estimator answer, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import isnan
from typing import Any, get_args

from gpo.contracts import Engine
from gpo.errors import EngineError
from gpo.types import Completion, FinishReason, Request, StepScores, Trajectory, tokens_of

_MOST_NATS = 1e-3  # rounding may put a log-probability a little above 0
_PADDING = 1024  # embeddings are padded to round numbers, and a model may sample what no token stands for


def check_answers(requests: Sequence[Request], answers: Sequence[Sequence[Completion]], engine: Engine) -> None:
    """Raises: EngineError if the engine has not answered what it was asked."""
    who = f"The engine {type(engine).__name__}"
    if len(answers) != len(requests):
        raise EngineError(f"{who} answered {len(answers)} requests; expected {len(requests)}, in order.")
    vocabulary, stops = _size(engine.tokenizer), engine.stop_ids
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        where = f"{who}'s answer to request {number}"
        if len(answer) != request.n:
            raise EngineError(f"{where} has {len(answer)} completions; expected {request.n}.")
        for completion in answer:
            _check(f"{where} has a completion", completion, request, vocabulary)
            if completion.finish_reason == "stop" and stops and completion.token_ids[-1] not in stops:
                raise EngineError(
                    f"{where} has a completion that stops with token {completion.token_ids[-1]}; expected one of its "
                    f"stop_ids, {', '.join(map(str, sorted(stops)))}, or finish reason 'length'."
                )


def _check(what: str, completion: Completion, request: Request, vocabulary: int | None) -> None:
    ids, nats = completion.token_ids, completion.logprobs
    if not isinstance(ids, tuple) or not set(map(type, ids)) <= {int}:
        odd = next((type(each).__name__ for each in ids if type(each) is not int), "") if isinstance(ids, tuple) else ""
        got = type(ids).__name__ + f" with a {odd}" * bool(odd)
        raise EngineError(f"{what} whose token_ids are a {got}; expected a tuple of int.")
    if not ids:
        raise EngineError(f"{what} of no tokens; expected at least the token that ends it.")
    if len(ids) > request.max_tokens:
        raise EngineError(f"{what} of {len(ids)} tokens; expected at most {request.max_tokens}.")
    if completion.finish_reason not in get_args(FinishReason):
        known = " or ".join(get_args(FinishReason))
        raise EngineError(f"{what} with finish reason {completion.finish_reason!r}; expected {known}.")
    if not (min(ids) >= 0 and (vocabulary is None or max(ids) < vocabulary)):
        below = "no negative one" if vocabulary is None else f"ids from 0 to {vocabulary - 1}"
        stray = next(token for token in ids if token < 0 or (vocabulary is not None and token >= vocabulary))
        raise EngineError(
            f"{what} with token id {stray}; expected {below}. Give the engine the tokenizer that belongs to its model."
        )
    if nats is not None:
        check_logprobs(what, nats, len(ids))


def check_logprobs(what: str, nats: Sequence[float], tokens: int) -> None:
    """Raises: EngineError if these are not the log-probabilities of so many tokens."""
    if len(nats) != tokens:
        raise EngineError(f"{what} with {len(nats)} log-probabilities; expected one for each of {tokens} tokens.")
    wrong = [value for value in nats if isnan(value) or value > _MOST_NATS]
    if wrong:
        raise EngineError(f"{what} with log-probability {wrong[0]}; expected nats of at most 0.")


def check_scores(who: str, scores: Sequence[StepScores], batch: Sequence[Trajectory], tokens: int) -> None:
    """Raises: EngineError if an estimator has not scored what it was given, or not said what it sampled."""
    if not isinstance(scores, Sequence) or not all(isinstance(score, StepScores) for score in scores):
        got = f"a list of {_other(scores)}" if isinstance(scores, Sequence) else f"a {type(scores).__name__}"
        raise EngineError(f"{who} gave {got}; expected a list of StepScores, one for each trajectory.")
    for number, (score, trajectory) in enumerate(zip(scores, batch, strict=False)):
        if score.trajectory_id != trajectory.id:
            raise EngineError(
                f"{who} gave as result {number} one of trajectory {score.trajectory_id!r}, expected of "
                f"{trajectory.id!r}: one result for each trajectory, in the order of the trajectories."
            )
        if what := score.misfit(len(trajectory.step_ends), new=True):
            raise EngineError(f"{who} gave {what}.")
        if (sampled := tokens_of(score.rollouts)) > score.tokens:
            raise EngineError(
                f"{who} gave rollouts of {sampled} tokens and `StepScores.tokens` of {score.tokens}. "
                "Expected rollouts that it has sampled for this trajectory, all of whose tokens are counted."
            )
    told = sum(score.tokens for score in scores)
    if len(scores) != len(batch) or told != tokens:
        raise EngineError(
            f"{who} gave {len(scores)} results with {told} tokens for {len(batch)} trajectories and {tokens} "
            "sampled tokens. Expected one result for each trajectory, in order, and `StepScores.tokens` that add up."
        )


def _other(scores: Sequence[Any]) -> str:
    return next(type(score).__name__ for score in scores if not isinstance(score, StepScores))


def check_ends(who: str, ends: Any, tokens: int) -> tuple[int, ...]:
    """The ends of the steps of a response of so many tokens.

    Raises:
        EngineError: they are none.
    """
    plain = isinstance(ends, tuple | list) and all(type(end) is int for end in ends)
    if not plain or any(end <= before for before, end in pairwise((0, *ends))) or (0, *ends)[-1] != tokens:
        raise EngineError(
            f"{who} cut a response of {tokens} tokens at {_brief(ends)}. Expected a tuple of increasing int above 0, "
            "the last of them the length; () for no tokens."
        )
    return tuple(ends)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _size(tokenizer: Any) -> int | None:
    """Tokens that a model with this tokenizer may know; None if the tokenizer does not say."""
    try:
        return len(tokenizer) + _PADDING
    except TypeError:
        return None
