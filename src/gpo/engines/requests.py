"""Whether an engine can serve what it is asked for: the checks that every engine makes, without torch."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from gpo.errors import ConfigError, EngineError
from gpo.images.tokens import FIRST
from gpo.types import Request


def token_limits(
    requests: Sequence[Request], *, context_length: int, vocabulary: int, images: bool = False
) -> list[int]:
    """Tokens to sample at most for each request: its own limit, or what the context leaves.

    Raises:
        EngineError: a request asks for nothing, has no tokens or unknown ones, or leaves no room in the context.
    """
    for index, request in enumerate(requests):
        what = f"Request {index}"
        if request.n < 1 or request.max_tokens < 1:
            raise EngineError(f"{what} has n={request.n}, max_tokens={request.max_tokens}; both must be at least 1.")
        check_tokens(what, request.token_ids, vocabulary, images)
        if len(request.token_ids) >= context_length:
            raise EngineError(
                f"{what} has {len(request.token_ids)} tokens, expected fewer than the model's context "
                f"({context_length}). Shorten the prompt or take a model with a longer context."
            )
    return [min(request.max_tokens, context_length - len(request.token_ids)) for request in requests]


def check_continuations(
    contexts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    context_length: int,
    vocabulary: int,
    images: bool = False,
) -> None:
    """Raises: EngineError if `Engine.logprobs` cannot be answered for one of them."""
    if len(contexts) != len(continuations):
        raise EngineError(f"Got {len(contexts)} contexts and {len(continuations)} continuations; expected as many.")
    for index, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        what = f"Sequence {index}"
        check_tokens(what, (*context, *continuation) if context else (), vocabulary, images)
        if len(context) + len(continuation) > context_length:
            raise EngineError(
                f"{what} has {len(context)} + {len(continuation)} tokens, expected at most {context_length}, the "
                "model's context. Shorten it or take a model with a longer context."
            )


def check_tokens(what: str, token_ids: Sequence[int], vocabulary: int, images: bool = False) -> None:
    """Raises: EngineError if there are no tokens, ids that are not below `vocabulary`, or images that are not taken."""
    if not token_ids:
        raise EngineError(f"{what} has no tokens; start from at least one (the tokenizer's BOS, say).")
    least, most = min(token_ids), max(token_ids)
    if most >= FIRST:
        if not images:
            raise EngineError(
                f"{what} has an image, and this engine or its model takes none. Use --engine hf and a "
                "vision-language model with its processor; see docs/images.md."
            )
        most = max((token for token in token_ids if token < FIRST), default=0)
        least = min(least, most)
    if not 0 <= least <= most < vocabulary:
        raise EngineError(
            f"{what} has token ids from {least} to {most}, expected 0 to {vocabulary - 1}. "
            "Does the tokenizer belong to this model?"
        )


def check_temperature(temperature: float) -> None:
    """Raises: ConfigError if it is negative or not finite."""
    if not 0.0 <= temperature < inf:
        raise ConfigError(f"Temperature must be 0 (greedy) or positive, got {temperature}.")
