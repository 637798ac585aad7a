"""From a problem to the token ids that a model is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpo.contracts import Task
from gpo.errors import DataError
from gpo.rollout.scoring import LIMIT, within
from gpo.types import Message, Problem, Start


def render(messages: Sequence[Message], tokenizer: Any) -> tuple[int, ...]:
    """Token ids of a conversation whose next turn is the model's, left open for a prefix to continue.

    With a chat template, the template decides (few-shot examples are earlier user and assistant turns). Without one,
    a question alone stands on lines of its own, and examples make the few-shot form of base models: "Question: ..."
    and "Answer: ..." with blank lines between, where grading ends an answer that runs on into a next "Question:".
    """
    if getattr(tokenizer, "chat_template", None):
        return _rendered(messages, tokenizer)
    if len(messages) == 1:
        text = messages[0]["content"].removesuffix("\n") + "\n"
    else:
        labels = {"user": "Question: ", "assistant": "Answer: "}
        ends = {"user": "\n", "assistant": "\n\n"}
        turns = [labels.get(m["role"], "") + m["content"].strip() + ends.get(m["role"], "\n\n") for m in messages]
        text = "".join(turns) + "Answer:"
    return tuple(tokenizer.encode(text, add_special_tokens=True))


def _rendered(messages: Sequence[Message], tokenizer: Any) -> tuple[int, ...]:
    """By the chat template of a model, which whoever published the model wrote.

    Raises:
        DataError: the template refuses the messages, does not end, or is none.
    """

    def apply() -> object:
        return tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )

    try:
        ids: Any = within(LIMIT, apply)
        return tuple(ids)
    except Exception as error:  # jinja2 runs what a template says, and raises what that raises
        what = " ".join(str(error).split())[:300]
        raise DataError(
            f"The chat template of the model cannot be used: {type(error).__name__}: {what}. "
            "Give the tokenizer another chat_template, or none."
        ) from error


def question_start(problem: Problem, task: Task, tokenizer: Any) -> Start:
    """The start of a rollout from the question."""
    return Start(problem.id, render(task.prompt(problem), tokenizer))
