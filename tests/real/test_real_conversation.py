"""A chat template, an open turn of the assistant, and the tokens that end it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gpo.engines.hf import HFEngine
from gpo.engines.loading import end_of_turn
from gpo.engines.served_tokens import facts_of
from gpo.preferences.pairs import build_pairs
from gpo.rollout.prompting import question_start, render
from gpo.rollout.sampler import Sampler
from gpo.tasks.question import Question
from gpo.types import ModelRef, Problem, Request, Score

END_OF_TEXT, END_OF_TURN = 0, 2
SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"


def test_the_turn_of_the_assistant_is_open(engine: HFEngine) -> None:
    ids = render([{"role": "user", "content": "Hi?"}], engine.tokenizer)
    assert engine.tokenizer.decode(ids) == f"{SYSTEM}<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
    shots = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "?"},
    ]
    text = engine.tokenizer.decode(render(shots, engine.tokenizer))  # type: ignore[arg-type]
    assert text.count("<|im_start|>assistant\n") == 2
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_a_prefix_goes_on_in_the_same_turn(engine: HFEngine) -> None:
    """What is sampled behind half of the greedy answer is the other half."""
    prompt = render([{"role": "user", "content": "What is the capital of France?"}], engine.tokenizer)
    [[whole]] = engine.generate([Request(prompt, 1, 24, 0)], temperature=0.0)
    half = len(whole.token_ids) // 2
    [[rest]] = engine.generate([Request(prompt + whole.token_ids[:half], 1, 24 - half, 0)], temperature=0.0)
    assert whole.text == "The capital of France is Paris."
    assert whole.token_ids[:half] + rest.token_ids == whole.token_ids


def test_a_response_ends_with_its_turn_and_not_with_the_text(engine: HFEngine) -> None:
    assert engine.stop_ids == {END_OF_TURN}
    prompt = render([{"role": "user", "content": "What is the capital of France?"}], engine.tokenizer)
    [[completion]] = engine.generate([Request(prompt, 1, 24, 0)], temperature=0.0)
    assert (completion.finish_reason, completion.token_ids[-1]) == ("stop", END_OF_TURN)
    assert END_OF_TURN not in completion.token_ids[:-1]
    [[cut]] = engine.generate([Request(prompt, 1, len(completion.token_ids) - 1, 0)], temperature=0.0)
    assert (cut.finish_reason, cut.token_ids) == ("length", completion.token_ids[:-1])


def base_model(smollm2: Path) -> Any:
    """The tokenizer as base models have it: the end of sequence is that of the text, and there is a template."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.eos_token = "<|endoftext|>"
    assert tokenizer.eos_token_id == END_OF_TEXT
    return tokenizer


def test_the_end_of_turn_of_the_template_stops_a_model_whose_end_of_sequence_is_another(
    smollm2: Path, engine: HFEngine, plain: Any
) -> None:
    tokenizer = base_model(smollm2)
    model = copy.copy(plain)
    model.generation_config = copy.deepcopy(plain.generation_config)
    model.generation_config.eos_token_id = END_OF_TEXT
    base = HFEngine(model, tokenizer)
    assert base.stop_ids == facts_of(ModelRef(str(smollm2), "smollm2"), tokenizer).stop_ids | {END_OF_TEXT}
    assert base.stop_ids == {END_OF_TEXT, END_OF_TURN}
    prompt = render([{"role": "user", "content": "What is the capital of France?"}], tokenizer)
    [[completion]] = base.generate([Request(prompt, 1, 24, 0)], temperature=0.0)
    assert (completion.finish_reason, completion.token_ids[-1]) == ("stop", END_OF_TURN)
    assert completion.text == "The capital of France is Paris."


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>\n{% endfor %}", END_OF_TURN),
        ("{% for m in messages %}{{ m['content'] }}<|im_end|>\n{% endfor %}<|endoftext|>", END_OF_TURN),
        ("{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}", END_OF_TEXT),
        ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}", None),
        ("{{ raise_exception('no') }}", None),
        (None, None),
    ],
)
def test_the_end_of_turn_is_read_off_the_template(smollm2: Path, template: str | None, expected: int | None) -> None:
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    tokenizer.chat_template = template
    assert end_of_turn(tokenizer) == expected


class Contains(Question):
    """A task that takes an answer for right wherever it stands."""

    def score(self, problem: Problem, text: str) -> Score:
        right = problem.answer in text
        return Score(float(right), "right" if right else "wrong", text)


def test_pairs_have_the_end_of_turn_as_a_token_and_not_in_their_text(engine: HFEngine) -> None:
    task = Contains("What is the capital of Australia? Answer with one word.", "Canberra", instruction="")
    [problem] = task.problems("train")
    sampler = Sampler(engine, task, {problem.id: problem}, max_tokens=12, seed=3)
    groups = sampler([question_start(problem, task, engine.tokenizer)], 16)
    pairs = build_pairs(groups, engine.tokenizer, stop_ids=engine.stop_ids)
    assert pairs
    for pair in pairs:
        for ids, text in ((pair.chosen_ids, pair.chosen), (pair.rejected_ids, pair.rejected)):
            assert "<|" not in text
            assert engine.tokenizer.decode(ids) == text + "<|im_end|>" * (ids[-1] == END_OF_TURN)
    assert any(pair.chosen_ids[-1] == END_OF_TURN for pair in pairs)
