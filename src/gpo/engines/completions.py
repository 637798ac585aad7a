"""What is asked of /v1/completions, and what of its answer can be used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from gpo.engines.endpoints import Foreign, Unusable

MOST_NATS = 1e-3  # rounding may put a log-probability a little above 0
LEAST_NATS = -1e5  # vLLM writes -9999 for minus infinity; low temperatures go further down
# What a server may have other defaults for: vLLM takes them from the model's generation_config.json.
PLAIN = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True, slots=True)
class Ask:
    """Continuations `first` to `first + n - 1` of a request."""

    position: int  # of the request
    first: int
    n: int
    prompt: tuple[int, ...]
    max_tokens: int
    seed: int

    def body(self, model: str, stop_ids: Collection[int], temperature: float, logprobs: bool) -> dict[str, Any]:
        return {
            "model": model,
            "prompt": list(self.prompt),
            "n": self.n,
            "max_tokens": self.max_tokens,
            "temperature": temperature,
            "seed": self.seed,
            "stop_token_ids": sorted(stop_ids),
            "return_token_ids": True,
            **({"logprobs": 0} if logprobs else {}),
            **PLAIN,
        }


def seed_of(seed: int, first: int) -> int:
    """62 bits: servers that give continuation i the seed s + i find room, and those of two requests do not meet."""
    return int.from_bytes(blake2b(f"{seed}/{first}".encode(), digest_size=8).digest(), "big") >> 2


def read_sampled(
    answer: Any,
    ask: Ask,
    *,
    names: Collection[str],
    stop_ids: frozenset[int],
    vocabulary: int,
    logprobs: bool,
    seen: set[str],
) -> list[tuple[tuple[int, ...], tuple[float, ...] | None]]:
    """Token ids and log-probabilities of each continuation.

    Args:
        names: by which the server may call the model that was asked.
        seen: identifiers of answers so far; this one's is added.

    Raises:
        Foreign: it is no answer of such a server.
        Unusable: it is not an answer to this.
    """
    choices = choices_of(answer, names, ask.n)
    identifier = answer.get("id")
    if isinstance(identifier, str) and identifier in seen:
        raise Unusable("an answer that came before")
    found = [_read_choice(choice, ask, stop_ids, vocabulary, logprobs) for choice in choices]
    if isinstance(identifier, str):
        seen.add(identifier)
    return found


def choices_of(answer: Any, names: Collection[str], n: int) -> list[Mapping[str, Any]]:
    """The choices in order.

    Raises:
        Foreign: it is no answer of such a server.
        Unusable: the answer is of another model, or does not have n of them.
    """
    if not isinstance(answer, Mapping) or not isinstance(answer.get("choices"), list):
        raise Foreign("JSON without choices")
    if not isinstance(answer.get("model"), str) or answer["model"] not in names:
        raise Unusable("an answer of another model", repr(answer.get("model")))
    choices = [choice for choice in answer["choices"] if isinstance(choice, Mapping)]
    if sorted(str(choice.get("index")) for choice in choices) != sorted(map(str, range(n))):
        raise Unusable("a wrong number of choices", f"{len(answer['choices'])} for {n}")
    return sorted(choices, key=lambda choice: int(choice["index"]))


def _read_choice(
    choice: Mapping[str, Any], ask: Ask, stop_ids: frozenset[int], vocabulary: int, logprobs: bool
) -> tuple[tuple[int, ...], tuple[float, ...] | None]:
    if choice.get("prompt_token_ids") != list(ask.prompt):
        raise Unusable("an answer to another prompt")
    ids, reason = token_ids(choice.get("token_ids"), vocabulary), choice.get("finish_reason")
    stopped = choice.get("matched_stop")
    if reason == "stop" and type(stopped) is int and stopped in stop_ids and ids[-1:] != (stopped,):
        ids += (stopped,)  # SGLang may leave it out
    if reason not in ("stop", "length"):
        raise Unusable("an unknown finish reason", repr(reason))
    if not 1 <= len(ids) <= ask.max_tokens or stop_ids & set(ids[:-1]):
        raise Unusable("a wrong number of tokens", f"{len(ids)} for 1 to {ask.max_tokens}")
    if ids[-1] not in stop_ids and (reason == "stop" or len(ids) < ask.max_tokens):
        raise Unusable("an end that is none", f"after token {ids[-1]}")
    return ids, nats_of(choice, len(ids)) if logprobs else None


def token_ids(told: Any, vocabulary: int) -> tuple[int, ...]:
    """Raises: Unusable if these are not token ids of the model."""
    if not isinstance(told, list) or not all(type(each) is int for each in told):
        raise Unusable("no token ids")
    if told and not 0 <= min(told) <= max(told) < vocabulary:
        raise Unusable("unknown token ids", f"{min(told)} to {max(told)} where the model has {vocabulary}")
    return tuple(told)


def nats_of(choice: Mapping[str, Any], tokens: int, begin: int = 0) -> tuple[float, ...]:
    """The log-probabilities of so many tokens.

    Args:
        begin: tokens before them that are echoed.

    Raises:
        Unusable: there are fewer, or they are none.
    """
    told = choice.get("logprobs")
    values = told.get("token_logprobs") if isinstance(told, Mapping) else None
    if not isinstance(values, list) or len(values) < begin + tokens or (not begin and len(values) != tokens):
        raise Unusable("not one log-probability for each token")
    return tuple(map(nat, values[begin : begin + tokens]))


def nat(value: Any) -> float:
    """Raises: Unusable if it is no log-probability."""
    if type(value) not in (int, float) or not LEAST_NATS <= value <= MOST_NATS:
        raise Unusable("log-probabilities that are none", repr(value))
    return min(float(value), 0.0)


def told_nats(choice: Mapping[str, Any]) -> dict[str, float]:
    """The log-probabilities that are told of several tokens at the first position; empty if none are."""
    told = choice.get("logprobs")
    tops = told.get("top_logprobs") if isinstance(told, Mapping) else None
    first = tops[0] if isinstance(tops, Sequence) and tops else None
    return {str(token): nat(value) for token, value in first.items()} if isinstance(first, Mapping) else {}
