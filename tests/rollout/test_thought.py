"""What a model thinks is no answer: wherever its thought begins, however it is marked, whether it ends or not."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import gpo
from gpo.engines.loading import end_of_turn
from gpo.engines.templates import with_arguments
from gpo.errors import ConfigError
from gpo.experiment.traces import as_trajectories
from gpo.report.texts import text_lines
from gpo.report.watch import Written, graded
from gpo.rollout.prompting import Conclusions, question_start, render
from gpo.rollout.sampler import Sampler
from gpo.rollout.segmenters import Newline, pieces
from gpo.rollout.thought import Thought
from gpo.types import Completion, ModelRef, Problem, Request, Trajectory

SCRIPTED = ModelRef("scripted", "scripted")
QUESTION = [{"role": "user", "content": "2 + 2?"}]
PROBLEM = Problem("p", "2 + 2?", "4")
TASK = gpo.make("task", "question", instruction="")
CHATML, HARMONY = ("<|im_start|>", "<|im_end|>"), ("<|start|>", "<|return|>", "<|end|>", "<|channel|>", "<|message|>")
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
OURS = "{{ messages[0]['content'] }}<|im_start|>%s{%% if add_generation_prompt %%}%s{%% endif %%}"


def thinker(template: str, special: tuple[str, ...] = CHATML, marks: tuple[str, ...] = ("<think>", "</think>")) -> Any:
    """A tokenizer of bytes with a chat template: that of a model, by its name in TRL, or a text.

    Args:
        special: tokens that are in no text; the second ends a turn.
        marks: tokens that are.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[1], bos_token=special[0])
    fast.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    fast.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])
    origin = getattr(find_spec("trl"), "origin", None)
    assert origin
    file = Path(origin).parent / "chat_templates" / f"{template}.jinja"
    fast.chat_template = template if "{" in template else file.read_text(encoding="utf-8")
    return fast


@dataclass
class Scripted:
    """An engine that writes what it is told, one text for each request."""

    tokenizer: Any
    writes: list[str]
    context_length: int = 4096
    repeatable: bool = True
    model_ref: ModelRef = SCRIPTED

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self.tokenizer.eos_token_id})

    def generate(self, requests: Any, *, temperature: float = 1.0, logprobs: bool = False) -> list[list[Completion]]:
        return [[self._completion(request) for _ in range(request.n)] for request in requests]

    def logprobs(self, contexts: Any, continuations: Any, *, temperature: float = 1.0) -> list[tuple[float, ...]]:
        return [(0.0,) * len(ids) for ids in continuations]

    def _completion(self, request: Request) -> Completion:
        ids = self.tokenizer.encode(self.writes.pop(0), add_special_tokens=False)[: request.max_tokens]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Completion(tuple(ids), text, "stop" if ids[-1] in self.stop_ids else "length")


def sampled(tokenizer: Any, *writes: str, prefix: str = "", max_tokens: int = 1000) -> list[Trajectory]:
    start = question_start(PROBLEM, TASK, tokenizer)
    sample = Sampler(Scripted(tokenizer, list(writes)), TASK, {"p": PROBLEM}, max_tokens=max_tokens)  # type: ignore[arg-type]
    if prefix:
        ids = tuple(tokenizer.encode(prefix, add_special_tokens=False))
        start = type(start)("p", start.prompt_ids, ids)
    return list(sample([start], len(writes))[0].trajectories)


QWEN, QWEN_OPEN = thinker("qwen3"), thinker("qwen3_5_think")
R1 = thinker("deepseek_r1_distill", DEEPSEEK)
GPT_OSS = thinker("gptoss", HARMONY, ())
MAGISTRAL = thinker(OURS % ("[THINK][/THINK]", ""), (*CHATML, "[THINK]", "[/THINK]"), ())
GEMMA = thinker(OURS % ("<|channel>thought\n<channel|>", ""), (*CHATML, "<|channel>", "<channel|>"), ())
STRIPS = thinker(OURS % ("{# </think> #}", ""))  # the template takes thoughts out of earlier turns, and begins none
SPELLED = thinker(OURS % ("", "<think>\n"), CHATML, ())  # the marks are no tokens
SPECIAL = thinker(OURS % ("", "<think>\n"), (*CHATML, "<think>", "</think>"), ())
THOUGHT = "The answer is 5.\n\nWait, the answer is 4. Or is the answer 4 or 6?\n"
WAYS = {  # how each begins its response, ends its thought, and ends its response
    "qwen3": (QWEN, "<think>\n", "</think>\n\n", "<|im_end|>"),
    "qwen3.5": (QWEN_OPEN, "", "</think>\n\n", "<|im_end|>"),
    "r1": (R1, "", "</think>\n\n", "<｜end▁of▁sentence｜>"),
    "gpt-oss": (
        *(GPT_OSS, "<|channel|>analysis<|message|>"),
        *("<|end|><|start|>assistant<|channel|>final<|message|>", "<|return|>"),
    ),
    "magistral": (MAGISTRAL, "[THINK]", "[/THINK]", "<|im_end|>"),
    "gemma": (GEMMA, "<|channel>thought\n", "<channel|>", "<|im_end|>"),
    "strips": (STRIPS, "<think>\n", "</think>\n\n", "<|im_end|>"),
    "spelled": (SPELLED, "", "</think>\n\n", "<|im_end|>"),
    "special": (SPECIAL, "", "</think>", "<|im_end|>"),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_thought_is_no_answer(way: str) -> None:
    tokenizer, begin, end, stop = WAYS[way]
    answered, cut, stopped, only = sampled(
        tokenizer,
        f"{begin}{THOUGHT}{end}So it is \\boxed{{4}}.{stop}",
        f"{begin}{THOUGHT}",
        f"{begin}{THOUGHT}{stop}",
        f"{begin}{THOUGHT}{end}4{stop}",
    )
    assert (answered.score.verdict, answered.score.answer) == ("right", "4")
    assert (cut.score.verdict, cut.completion.finish_reason) == ("ungradable", "length")
    assert (stopped.score.verdict, stopped.completion.finish_reason) == ("ungradable", "stop")
    assert only.score.verdict == "right"  # nothing of the marks is left on the line of the answer


@pytest.mark.parametrize("way", WAYS)
def test_a_response_from_a_prefix_is_graded_as_the_whole_is(way: str) -> None:
    tokenizer, begin, end, stop = WAYS[way]
    prompt = render(QUESTION, tokenizer)
    [inside] = sampled(tokenizer, f"{end}\\boxed{{4}}{stop}", prefix=begin + THOUGHT)
    [open_still] = sampled(tokenizer, "The answer is 4.", prefix=begin + THOUGHT)
    [behind] = sampled(tokenizer, f"\\boxed{{4}}{stop}", prefix=f"{begin}{THOUGHT}{end}")
    assert [t.score.verdict for t in (inside, open_still, behind)] == ["right", "ungradable", "right"]
    assert inside.start.token_ids[: len(prompt)] == prompt
    whole = tokenizer.encode(f"{begin}{THOUGHT}{end}\\boxed{{4}}{stop}", add_special_tokens=False)
    assert list(inside.response_ids) == list(behind.response_ids) == whole


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_that_is_forced_within_a_thought_ends_it_first(way: str) -> None:
    tokenizer, begin, end, _ = WAYS[way]
    conclude = Conclusions(TASK, {"p": PROBLEM}, tokenizer)

    def before_answer(prefix: str) -> str:
        start = question_start(PROBLEM, TASK, tokenizer)
        ids = tuple(tokenizer.encode(prefix, add_special_tokens=False))
        return str(tokenizer.decode(conclude(type(start)("p", start.prompt_ids, ids), "4")[0]))

    assert before_answer(begin + THOUGHT).startswith(end)
    assert before_answer(begin + THOUGHT).endswith("So the answer is ")
    assert before_answer(f"{begin}{THOUGHT}{end}First.\n") == "So the answer is "


def test_a_model_that_is_told_not_to_think_is_graded_on_all_it_says() -> None:
    tokenizer = with_arguments(QWEN, {"enable_thinking": False})
    [said] = sampled(tokenizer, "The answer is 4.<|im_end|>")
    assert said.score.right
    assert tokenizer.decode(said.start.prompt_ids).endswith("assistant\n<think>\n\n</think>\n\n")


def test_a_written_solution_goes_on_in_the_thought_that_the_prompt_begins() -> None:
    texts = [f"<think>\n{THOUGHT}</think>\n\n\\boxed{{4}}", f"<think>\n{THOUGHT}"]
    for tokenizer, dropped in ((QWEN, 0), (QWEN_OPEN, len("<think>\n"))):
        found = as_trajectories([PROBLEM] * 2, texts, TASK, Scripted(tokenizer, []))  # type: ignore[arg-type]
        whole, unfinished = (t for t in found if t is not None)
        for t, text in ((whole, texts[0]), (unfinished, texts[1])):
            assert tokenizer.decode(t.response_ids[:-1]) == t.completion.text == text.strip()[dropped:]
        assert (whole.score.verdict, unfinished.score.verdict) == ("right", "ungradable")


def test_the_mark_is_no_step_of_a_solution_that_comes_in_steps() -> None:
    lines = ["<think>", "First.", "</think>", "\\boxed{4}"]
    for tokenizer, first in ((QWEN, "<think>\nFirst."), (QWEN_OPEN, "First.")):
        [t] = as_trajectories([PROBLEM], [lines], TASK, Scripted(tokenizer, []))  # type: ignore[arg-type]
        assert t is not None
        assert len(t.step_ends) == 3
        assert tokenizer.decode(t.response_ids[: t.step_ends[0]]).strip() == first


def test_a_tokenizer_that_tells_little_is_enough() -> None:
    class Mini:
        chat_template, eos_token_id = "<think></think>", None

        def encode(self, text: str, **_: Any) -> list[int]:
            return [*map(ord, text)]

        def decode(self, ids: Any, skip_special_tokens: bool = False) -> str:
            text = "".join(map(chr, ids))
            return text.replace("<think>", "").replace("</think>", "") if skip_special_tokens else text

    thought, said = Thought(Mini()), "<think>a</think>b"
    assert thought.turn((), Mini().encode(said)) == said
    assert thought.end((), Mini().encode("<think>a")) == "</think>\n\n"
    assert thought.end((), Mini().encode(said)) == ""


def test_what_is_written_before_ones_eyes_is_graded_alike() -> None:
    start, ids = question_start(PROBLEM, TASK, R1), tuple(R1.encode(THOUGHT, add_special_tokens=False))
    engine: Any = Scripted(R1, [])
    assert graded(TASK, PROBLEM, engine, start, Written(ids, (len(ids),), True, True)).score.verdict == "ungradable"


def test_a_model_that_does_not_think_has_no_thought() -> None:
    thought = Thought(thinker("qwen2_5"))
    assert not thought.begun(render([{"role": "user", "content": "<think>"}], thought.tokenizer))
    assert thought.turn((), (), "The answer is 4.") == "The answer is 4."
    assert thought.end((), ()) == ""


def test_the_steps_of_a_thought_are_its_lines_and_its_mark_is_none() -> None:
    [t] = sampled(QWEN, "<think>\nFirst.\n\nWait, no.\n</think>\n\n\\boxed{4}.<|im_end|>")
    texts = pieces(t.response_ids, QWEN)
    steps = ["".join(texts[a:b]) for a, b in zip(t.boundaries, t.step_ends, strict=False)]
    assert steps == ["<think>\nFirst.\n\n", "Wait, no.\n", "</think>\n\n", "\\boxed{4}."]
    assert Newline()(QWEN.encode("<think>\n", add_special_tokens=False), QWEN) == (2,)
    assert text_lines(t) == ["<think>\nFirst.", "Wait, no.", "</think>", "\\boxed{4}."]


@pytest.mark.parametrize(
    ("tokenizer", "arguments"),
    [
        (QWEN, {"enable_thinking": False}),
        (QWEN_OPEN, {"enable_thinking": False}),
        (GPT_OSS, {"reasoning_effort": "high"}),
    ],
    ids=["qwen3", "qwen3.5", "gpt-oss"],
)
def test_a_prompt_is_what_the_template_makes_of_the_arguments(tokenizer: Any, arguments: dict[str, Any]) -> None:
    asked = {"add_generation_prompt": True, "tokenize": True, "return_dict": False}
    plain, given = (tokenizer.apply_chat_template(QUESTION, **asked, **more) for more in ({}, arguments))
    assert list(render(QUESTION, tokenizer)) == plain != given
    assert list(render(QUESTION, with_arguments(tokenizer, arguments))) == given
    assert list(render(QUESTION, tokenizer)) == plain  # what was handed over is as it was
    assert end_of_turn(with_arguments(tokenizer, arguments)) == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enable_thinkin": False}, "has 'enable_thinkin', expected names that the chat template of the model reads"),
        ({"messages": []}, "has 'messages', expected names that the chat template of the model reads beside messages"),
        ("enable_thinking", "is 'enable_thinking', expected values by names"),
        ({1: False}, "is {1: False}, expected values by names"),
    ],
)
def test_arguments_that_no_template_reads_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_arguments(QWEN, arguments)


def test_arguments_need_a_template() -> None:
    class Bare:
        chat_template = None

    with pytest.raises(ConfigError, match="has no chat template, which alone reads chat_template_kwargs"):
        with_arguments(Bare(), {"enable_thinking": False})
