"""What an engine, a grader and an estimator answer, checked before anything is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any, get_args

from gpo.errors import DataError, EngineError
from gpo.types import Completion, FinishReason, Group, Request, StepScores, Trajectory

_MOST_NATS = 1e-3  # rounding may put a log-probability a little above 0
_PADDING = 1024  # embeddings are padded to round numbers, and a model may sample what no token stands for


def check_answers(requests: Sequence[Request], answers: Sequence[Sequence[Completion]], tokenizer: Any) -> None:
    """Raises: EngineError if the engine has not answered what it was asked."""
    if len(answers) != len(requests):
        raise EngineError(f"The engine answered {len(answers)} requests; expected {len(requests)}, in order.")
    vocabulary = _size(tokenizer)
    for number, (request, answer) in enumerate(zip(requests, answers, strict=True)):
        where = f"The engine's answer to request {number}"
        if len(answer) != request.n:
            raise EngineError(f"{where} has {len(answer)} completions; expected {request.n}.")
        for completion in answer:
            _check(f"{where} has a completion", completion, request, vocabulary)


def _check(what: str, completion: Completion, request: Request, vocabulary: int | None) -> None:
    ids, nats = completion.token_ids, completion.logprobs
    if len(ids) > request.max_tokens:
        raise EngineError(f"{what} of {len(ids)} tokens; expected at most {request.max_tokens}.")
    if completion.finish_reason not in get_args(FinishReason):
        known = " or ".join(get_args(FinishReason))
        raise EngineError(f"{what} with finish reason {completion.finish_reason!r}; expected {known}.")
    if ids and not (min(ids) >= 0 and (vocabulary is None or max(ids) < vocabulary)):
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
    told = sum(score.tokens for score in scores)
    if [score.trajectory_id for score in scores] != [trajectory.id for trajectory in batch] or told != tokens:
        raise EngineError(
            f"{who} gave {len(scores)} results with {told} tokens for {len(batch)} trajectories and {tokens} "
            "sampled tokens. Expected one result for each trajectory, in order, and `StepScores.tokens` that add up."
        )
    for score, trajectory in zip(scores, batch, strict=True):
        if what := score.misfit(len(trajectory.step_ends)):
            raise EngineError(f"{who} gave {what}.")


def _size(tokenizer: Any) -> int | None:
    """Tokens that a model with this tokenizer may know; None if the tokenizer does not say."""
    try:
        return len(tokenizer) + _PADDING
    except TypeError:
        return None


def refuse_a_broken_grader(groups: Sequence[Group]) -> None:
    """Raises: DataError if none of these first answers could be graded."""
    scores = [trajectory.score for group in groups for trajectory in group.trajectories]
    if scores and all(score.verdict == "failed" for score in scores):
        raise DataError(
            f"None of the first {len(scores)} answers could be graded: {scores[0].reason or 'no reason is known'}. "
            "Nothing was kept. Mend the task's `score`, then run the same command again."
        )
