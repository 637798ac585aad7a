"""From a problem to the token ids that a model is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpo.contracts import Task
from gpo.errors import ConfigError, DataError, naming
from gpo.images.tokenizer import ImageTokenizer, shows_images
from gpo.rollout.scoring import LIMIT, within
from gpo.rollout.thought import Thought
from gpo.types import Message, Problem, Start


def render(messages: Sequence[Message], tokenizer: Any) -> tuple[int, ...]:
    """Token ids of a conversation whose next turn is the model's, left open for a prefix to continue.

    With a chat template, the template decides (few-shot examples are earlier user and assistant turns), given the
    `chat_template_kwargs` that an engine has set on its tokenizer (`gpo.engines.templates`). Without one,
    a question alone stands on lines of its own, and examples make the few-shot form of base models: "Question: ..."
    and "Answer: ..." with blank lines between, where grading ends an answer that runs on into a next "Question:".

    Raises:
        ConfigError: there are images, and the engine or its model takes none.
        DataError: an image cannot be read, or the chat template cannot be used, or there is none that places images.
    """
    shown = shows_images(messages)
    if shown and not isinstance(tokenizer, ImageTokenizer):
        raise ConfigError(
            "The task asks about images, and the engine or its model takes none: expected --engine hf and a "
            "vision-language model with its processor. See docs/images.md."
        )
    if getattr(tokenizer, "chat_template", None):
        return _rendered(messages, tokenizer)
    if shown:
        raise DataError(
            "The model has no chat template, which alone says where an image is in a prompt. Put a chat_template.jinja "
            "beside it, or take its instruction-tuned version."
        )
    if len(messages) == 1:
        text = text_of(messages[0]).removesuffix("\n") + "\n"
    else:
        labels = {"user": "Question: ", "assistant": "Answer: "}
        ends = {"user": "\n", "assistant": "\n\n"}
        turns = [labels.get(m["role"], "") + text_of(m).strip() + ends.get(m["role"], "\n\n") for m in messages]
        text = "".join(turns) + "Answer:"
    return tuple(tokenizer.encode(text, add_special_tokens=True))


def _rendered(messages: Sequence[Message], tokenizer: Any) -> tuple[int, ...]:
    """By the chat template of a model, which whoever published the model wrote.

    Raises:
        DataError: the template refuses the messages, does not end, or is none.
    """

    def apply() -> object:
        arguments = getattr(tokenizer, "chat_template_kwargs", None) or {}
        return tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **arguments
        )

    try:
        ids: Any = within(LIMIT, apply)
        return tuple(ids)
    except DataError:
        raise
    except Exception as error:  # jinja2 runs what a template says, and raises what that raises
        what = " ".join(str(error).split())[:300]
        raise DataError(
            f"The chat template of the model cannot be used: {type(error).__name__}: {what}. "
            "Give the tokenizer another chat_template, or none."
        ) from error


def text_of(message: Message) -> str:
    """The texts of a turn, without its images."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def question_start(problem: Problem, task: Task, tokenizer: Any) -> Start:
    """The start of a rollout from the question.

    Raises:
        EngineError: the task gives no messages.
    """
    with naming(f"The prompt of the task {type(task).__name__} for problem {problem.id}"):
        return Start(problem.id, render(task.prompt(problem), tokenizer))


MARKS = {  # what a prompt asks an answer to be marked with: what is said before the answer, and behind it
    "####": ("#### ", ""),
    "\\boxed": ("The final answer is \\boxed{", "}"),
    "answer is": ("So the answer is ", ""),
}


@dataclass(frozen=True)
class Conclusions:
    """How a response to a task's problems says its answer, as token ids."""

    task: Task
    problems: Mapping[str, Problem]
    tokenizer: Any

    @cached_property
    def _thought(self) -> Thought:
        return Thought(self.tokenizer)

    def __call__(self, start: Start, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What comes before the answer behind a prefix, on a line of its own, and the answer.

        A thought that the prefix ends in is ended first.
        """
        before, behind = form_of(self.task.prompt(self.problems[start.problem_id]))
        last = self.tokenizer.decode(start.prefix_ids[-1:], skip_special_tokens=True)
        line = "\n" if last and not last.endswith("\n") else ""
        line += self._thought.end(start.prompt_ids, start.prefix_ids)
        phrase, whole = (
            tuple(self.tokenizer.encode(text, add_special_tokens=False))
            for text in (line + before, line + before + answer + behind)
        )
        # A space may be a part of the answer's first token.
        same = next((i for i, (a, b) in enumerate(zip(phrase, whole, strict=False)) if a != b), len(phrase))
        return whole[:same], whole[same:]


def form_of(messages: Sequence[Message]) -> tuple[str, str]:
    """By the mark that is named last in a prompt, examples included; "So the answer is" where none is."""
    text = "\n".join(map(text_of, messages))
    mark = max(MARKS, key=text.rfind)
    return MARKS[mark if mark in text else "answer is"]
