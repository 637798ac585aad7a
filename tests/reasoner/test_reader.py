"""The reader goes on from what somebody else wrote, right or wrong."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from gpo.config.presets import model_path
from gpo.engines.hf import HFEngine
from gpo.reasoner import foreign
from gpo.reasoner.example import Example
from gpo.types import Request


@pytest.fixture(scope="module")
def engine() -> HFEngine:
    return HFEngine(model_path("reader"))


def answers(engine: HFEngine, examples: list[Example]) -> list[str]:
    encode = engine.tokenizer.encode
    asked = [encode(f"<|user|>{e.question}<|assistant|>{e.given}", add_special_tokens=False) for e in examples]
    completions = engine.generate([Request(tuple(ids), 1, 500, seed) for seed, ids in enumerate(asked)])
    texts = [engine.tokenizer.decode(row[0].token_ids, skip_special_tokens=True) for row in completions]
    return [text.rpartition("So the answer is")[2].strip() for text in texts]


def begun(make, seed: int, number: int) -> list[Example]:
    rng = Random(seed)
    found: list[Example] = []
    while len(found) < number:
        example = make(rng)
        if example.given and len(example.given) < 600:
            found.append(example)
    return found


@pytest.mark.parametrize(("make", "least"), [(foreign.shuffled, 28), (foreign.brackets, 28), (foreign.arithmetic, 12)])
def test_it_goes_on_right_from_a_beginning_without_a_mistake(
    make, least: int, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "MISTAKEN", 0.0)
    examples = begun(make, 1, 40)
    right = sum(answer == e.answer for answer, e in zip(answers(engine, examples), examples, strict=True))
    assert right >= least


def test_it_goes_on_from_a_mistake_and_does_not_repair_it(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MISTAKEN", 1.0)
    faithful = [e for e in begun(foreign.shuffled, 2, 80) if not e.solution.endswith(f"is {e.answer}")]
    given = [replace(e, answer=e.solution.rpartition("So the answer is")[2].strip()) for e in faithful]
    found = answers(engine, given)
    assert len(given) > 20
    assert sum(a == e.answer for a, e in zip(found, given, strict=True)) > 0.6 * len(given)
    assert sum(a == e.answer for a, e in zip(found, faithful, strict=True)) < 0.2 * len(given)
