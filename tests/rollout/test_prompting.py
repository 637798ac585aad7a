"""Prompts as token ids: chat templates, thinking models, base models with and without examples."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from gpo.rollout.prompting import question_start, render
from gpo.tasks.grading import answer_text
from gpo.types import Problem

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ thinking }}{% endif %}"
)
QUESTION = [{"role": "user", "content": "2 + 2?"}]
SHOT = [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "1 and 1 make 2.\n#### 2"}]


def byte_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<think>", "</think>"]})
    fast.chat_template = template
    return fast


def text_of(tokenizer: Any, messages: Any) -> str:
    return str(tokenizer.decode(render(messages, tokenizer)))


def test_a_chat_template_decides_and_leaves_the_assistant_turn_open() -> None:
    tokenizer = byte_tokenizer(CHATML.replace("{{ thinking }}", ""))
    asked = text_of(tokenizer, [*SHOT, *QUESTION])
    assert asked == (
        "<|im_start|>user\n1 + 1?<|im_end|>\n<|im_start|>assistant\n1 and 1 make 2.\n#### 2<|im_end|>\n"
        "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_thinking_model_goes_on_in_its_thoughts() -> None:
    tokenizer = byte_tokenizer(CHATML.replace("{{ thinking }}", "<think>\n"))
    problem = Problem("p", "2 + 2?", "4")

    class Asking:
        def prompt(self, problem: Problem) -> list[dict[str, str]]:
            return [{"role": "user", "content": problem.question}]

    start = question_start(problem, Asking(), tokenizer)  # type: ignore[arg-type]
    assert tokenizer.decode(start.token_ids).endswith("assistant\n<think>\n")
    # The opening tag stands in the prompt; the response closes it, and what was thought is no answer.
    assert answer_text("The answer is 5? No.\n</think>\nThe answer is 4.") == "\nThe answer is 4."


def test_a_base_model_is_asked_the_question_alone() -> None:
    tokenizer = byte_tokenizer()
    assert text_of(tokenizer, QUESTION) == "2 + 2?\n"
    assert text_of(tokenizer, [{"role": "user", "content": "2 + 2?\n"}]) == "2 + 2?\n"


def test_a_base_model_sees_examples_in_the_usual_few_shot_form() -> None:
    asked = text_of(byte_tokenizer(), [*SHOT, *QUESTION])
    assert asked == "Question: 1 + 1?\nAnswer: 1 and 1 make 2.\n#### 2\n\nQuestion: 2 + 2?\nAnswer:"


@pytest.mark.parametrize("response", [" 2 and 2 make 4.\n#### 4\n\nQuestion: 3 + 3?\nAnswer: 3 and 3 make 6.\n#### 6"])
def test_a_base_model_that_asks_itself_the_next_question_is_graded_on_the_first(response: str) -> None:
    import gpo

    assert gpo.make("task", "gsm8k").score(Problem("p", "2 + 2?", "4"), response).right
