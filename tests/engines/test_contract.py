"""Every engine of the package fulfils the contract, and the contract finds engines that do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from gpo.contracts import Engine
from gpo.engines import contract
from gpo.engines.contract import CHECKS, Check, check_engine
from gpo.engines.hf import HFEngine
from gpo.errors import EngineError
from gpo.toy import ChainEngine
from gpo.types import Completion, Request

CONTEXTS = [(5, 9, 14, 3), (5, 9), (5, 9, 14) * 20]  # the last one all but fills 64 tokens
HF: dict[str, tuple[str, dict[str, Any]]] = {
    "fused": ("qwen3", {}),
    "library": ("qwen3", {"kernel": "library"}),
    "narrow": ("qwen3", {"max_rows": 2}),
    "recomputing": ("mamba", {}),
    **{family: (family, {}) for family in ("qwen2", "llama", "mistral", "gemma2", "gemma3", "gpt2")},
}


def chain() -> tuple[ChainEngine, list[tuple[int, ...]]]:
    engine = ChainEngine(context_length=40, padding=2)
    contexts = [tuple(engine.tokenizer.encode(text)) for text in ("0\n", "1\n")]
    [[long]] = engine.generate([Request(contexts[0], 1, 24, 0)])
    return engine, [*contexts, contexts[0] + long.token_ids]


@pytest.fixture(params=["chain", "bfloat16", *HF])
def case(request: pytest.FixtureRequest, build: Callable[[str], Any], word_tokenizer: Any) -> Any:
    if request.param == "chain":
        return chain()
    if request.param == "bfloat16":
        engine = HFEngine(model=deepcopy(build("qwen3")).bfloat16(), tokenizer=word_tokenizer)
        assert not engine.repeatable
        return engine, CONTEXTS
    family, fields = HF[request.param]
    model = build(family)
    context = CONTEXTS if model.config.model_type != "mamba" else CONTEXTS[:2]  # mamba states no limit
    return HFEngine(model=model, tokenizer=word_tokenizer, **fields), context


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Check, case: tuple[Engine, list[tuple[int, ...]]]) -> None:
    check(*case)


def test_all_checks_are_collected_and_run() -> None:
    named = {value for name, value in vars(contract).items() if name.startswith("check_")} - {check_engine}
    assert named == set(CHECKS)
    engine, contexts = chain()
    check_engine(engine, contexts)
    with pytest.raises(EngineError, match="closed"):
        engine.generate([])


class Altered(ChainEngine):
    """An engine whose completions are altered."""

    alter: Callable[[int, Completion], Completion]

    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        return [[self.alter(i, c) for i, c in enumerate(group)] for group in super().generate(requests, **settings)]


class ReversedOrder(ChainEngine):
    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        return super().generate(requests[::-1], **settings)


class OneSeed(ChainEngine):
    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        return super().generate([replace(request, seed=0) for request in requests], **settings)


class DependsOnNumber(ChainEngine):
    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        return super().generate([replace(r, seed=r.seed + r.n) for r in requests], **settings)


class ForgetsPrefix(ChainEngine):
    """Answers as if the last line were not there."""

    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        return super().generate([replace(r, token_ids=r.token_ids[:2]) for r in requests], **settings)


class AcceptsNothing(ChainEngine):
    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        groups = super().generate([r for r in requests if r.n], **settings)
        return [groups.pop(0) if request.n else [] for request in requests]


class OneTemperature(ChainEngine):
    """Knows greedy sampling and temperature 1 only."""

    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        return super().generate(requests, **settings | {"temperature": float(settings.get("temperature", 1) > 0)})

    def logprobs(self, contexts: Any, continuations: Any, *, temperature: float = 1.0) -> list[tuple[float, ...]]:
        return super().logprobs(contexts, continuations)


class Unsure(ChainEngine):
    """Tells too low log-probabilities, always the same ones."""

    def generate(self, requests: Sequence[Request], **settings: Any) -> list[list[Completion]]:
        groups = super().generate(requests, **settings)
        return [
            [replace(c, logprobs=c.logprobs and tuple(x - 0.3 for x in c.logprobs)) for c in group] for group in groups
        ]

    def logprobs(self, contexts: Any, continuations: Any, *, temperature: float = 1.0) -> list[tuple[float, ...]]:
        told = super().logprobs(contexts, continuations, temperature=temperature)
        return [tuple(x - 0.3 for x in each) for each in told]


class Unclosed(ChainEngine):
    def close(self) -> None:
        pass


def altered(alter: Callable[[int, Completion], Completion]) -> type[ChainEngine]:
    return type("Other", (Altered,), {"alter": lambda self, i, c: alter(i, c)})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (ReversedOrder, "not n completions for each request, in order"),
        (OneSeed, "another seed gives the same"),
        (DependsOnNumber, "continuation i depends on n"),
        (ForgetsPrefix, "nats behind a prefix|begin with the prefix|goes on otherwise"),
        (AcceptsNothing, "n = 0 is accepted, expected EngineError"),
        (OneTemperature, "do not scale with the temperature"),
        (Unsure, r"draws at temperature 1.0 have probability 0.7. in all, expected about 1.00"),
        (Unclosed, "a request after close is accepted"),
        (altered(lambda i, c: replace(c, text=c.text + " ")), "but the tokens say"),
        (altered(lambda i, c: replace(c, finish_reason="stop")), "finish_reason is 'stop', not 'length'"),
        (altered(lambda i, c: replace(c, token_ids=c.token_ids[:-1])), "tokens, expected 1 to|but . tokens of"),
        (altered(lambda i, c: replace(c, logprobs=c.logprobs or (0.0,))), "nobody asked for"),
        (
            altered(lambda i, c: replace(c, logprobs=c.logprobs and tuple(x - 0.01 for x in c.logprobs))),
            "sampling and logprobs differ by 0.01 nats at temperature 1",
        ),
    ],
)
def test_an_engine_that_breaks_the_contract_is_found(kind: type[ChainEngine], message: str) -> None:
    _, contexts = chain()
    with pytest.raises(AssertionError, match=message) as caught:
        check_engine(kind(context_length=40, padding=2), contexts)
    assert "found by check_" in caught.value.__notes__[0]
