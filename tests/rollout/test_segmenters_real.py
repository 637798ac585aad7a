"""Segmenters on real texts: solutions of GSM8K and MATH, traces of BIG-Bench-Mistake, long thoughts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gpo.rollout.segmenters import Authors, BlankLine, FixedTokens, Newline, Segmenter, Sentence

SEGMENTERS = [
    Newline(),
    Authors(),
    Sentence(),
    BlankLine(),
    FixedTokens(),
    Newline(sentence_tokens=30),
    Newline(min_step_tokens=8, max_steps=12),
]
# As Qwen cuts text: punctuation takes the newlines after it along, so that ".\n\n" can be one token.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END = "<|endoftext|>"


class Bytes:
    """Token = byte, decoded without loss."""

    eos_token_id = None

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode(errors="replace")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def texts(data: Path) -> dict[str, list[str]]:
    """Real texts by kind, and thoughts of tens of thousands of characters that are put together from them."""
    gsm8k = [row["answer"] for row in rows(data / "gsm8k/test.jsonl")]
    math = [row["solution"] for row in rows(data / "math500.jsonl")]
    mistake = ["\n".join(steps) for steps in traces(data)]
    thoughts = [
        "<think>\n" + "\n\nWait, let me check that — “again”.\n\n".join(math[i : i + 50]) + "\n</think>\n\n" + gsm8k[i]
        for i in range(0, 500, 50)
    ]
    return {"gsm8k": gsm8k, "math": math, "mistake": mistake, "think": thoughts}


def traces(data: Path) -> list[list[str]]:
    return [row["steps"] for file in sorted((data / "big_bench_mistake").glob("*.jsonl")) for row in rows(file)]


@pytest.fixture(scope="module")
def tokenizer(texts: dict[str, list[str]]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,000 tokens, learned from some of the texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([text for kind in texts.values() for text in kind[:100]], trainer)
    bpe.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, clean_up_tokenization_spaces=False)


def steps_of(segmenter: Segmenter, token_ids: Sequence[int], tokenizer: Any) -> Iterator[Sequence[int]]:
    for begin, end in pairwise((0, *segmenter(token_ids, tokenizer))):
        yield token_ids[begin:end]


def lines_of(text: str) -> list[str]:
    """The lines of a text with their newlines; a blank one belongs to the line before, or to the first one after.

    The mark that begins a thought is as good as blank.
    """
    lines: list[str] = []
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        if lines and (line.isspace() or not lines[-1].replace("<think>", "").strip()):
            lines[-1] += line
        else:
            lines.append(line)
    return lines


def test_the_real_texts_have_what_is_hard(texts: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast) -> None:
    assert sum("[asy]" in text for text in texts["math"]) == 56
    assert sum("\n\n" in text for text in texts["math"]) > 100
    assert sum(not text.isascii() for text in texts["gsm8k"]) > 50
    assert min(map(len, texts["think"])) > 20_000
    joined = {token for token in tokenizer.get_vocab() if token.endswith("ĊĊ") and token.strip("Ċ")}
    assert joined, "no token holds a separator and text"


@pytest.mark.parametrize("segmenter", SEGMENTERS, ids=repr)
@pytest.mark.parametrize("kind", ["gsm8k", "math", "mistake", "think"])
def test_steps_joined_are_the_text_to_the_byte(
    kind: str, segmenter: Segmenter, texts: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast
) -> None:
    for text in texts[kind][:250]:
        steps = list(steps_of(segmenter, tuple(text.encode()), Bytes()))
        assert b"".join(map(bytes, steps)) == text.encode()
        ids = (*tokenizer.encode(text), tokenizer.eos_token_id)
        parts = list(steps_of(segmenter, ids, tokenizer))
        assert [token for part in parts for token in part] == list(ids)
        if not isinstance(segmenter, FixedTokens):  # which may cut a character
            assert "".join(tokenizer.decode(part, skip_special_tokens=True) for part in parts) == text


@pytest.mark.parametrize("kind", ["gsm8k", "math", "mistake", "think"])
def test_a_line_is_a_step(kind: str, texts: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast) -> None:
    for text in texts[kind]:
        expected = lines_of(text)
        ids = tokenizer.encode(text)
        assert [tokenizer.decode(step) for step in steps_of(Newline(), ids, tokenizer)] == expected
        if kind != "think":
            bytewise = steps_of(Newline(), tuple(text.encode()), Bytes())
            assert [bytes(step).decode() for step in bytewise] == expected


def test_published_steps_are_found_again(data: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    found = published = 0
    for steps in traces(data):
        ids = tokenizer.encode("\n".join(steps))
        parts = [tokenizer.decode(step).strip("\n") for step in steps_of(Newline(), ids, tokenizer)]
        wanted = [step for step in steps if step.strip()]
        assert parts == wanted
        found, published = found + len(parts), published + len(steps)
    assert (found, published) == (16_998, 16_999)  # one published step is blank
