"""Steps are cut on token ids, joined they give the response back."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpo.errors import ConfigError
from gpo.rollout.segmenters import (
    Authors,
    BlankLine,
    FixedTokens,
    LowProbability,
    Newline,
    Sentence,
    merge_short,
    pieces,
    spread,
)


class Words:
    """A tokenizer whose tokens are the given texts; the last one, "", ends a sequence."""

    def __init__(self, *texts: str) -> None:
        self.texts = (*texts, "")
        self.eos_token_id = len(texts)
        self.decoded = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        self.decoded += 1
        return "".join(self.texts[token] for token in token_ids)


class Bytes:
    """A byte-level tokenizer: token = byte."""

    eos_token_id = None

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode(errors="replace")


class Sentencepiece(Words):
    """Drops the leading space of a text."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return super().decode(token_ids).removeprefix(" ")


def cut(segmenter, *texts: str, eos: bool = False) -> tuple[int, ...]:
    tokenizer = Words(*texts)
    return segmenter(tuple(range(len(texts) + eos)), tokenizer)


def test_a_long_line_is_cut_at_sentences_if_asked() -> None:
    line = ("One", " two", ".", " Mr", ".", " X", " has", " 3", ".", "5", ".", " So", " it", " is", ".\n", "End", ".")
    assert cut(Newline(), *line) == (15, 17)
    assert cut(Newline(sentence_tokens=3), *line) == (3, 11, 15, 17)  # "Mr." is too short, and 3.5 is one number
    assert cut(Newline(sentence_tokens=30), *line) == (15, 17)
    assert cut(Newline(sentence_tokens=1), "A", ".", "\n", "B", eos=True) == (3, 5)


def test_steps_of_a_prefix_are_those_of_the_whole() -> None:
    texts = ("a", " b", ".", " c", ".", " d", " e", ".", "\n", "f", " g", ".", " h")
    for size in (1, 2, 3, 4):
        segmenter = Newline(sentence_tokens=size)
        ends = cut(segmenter, *texts)
        for end in ends:
            assert cut(segmenter, *texts[:end]) == ends[: ends.index(end) + 1]


def test_a_sentence_of_no_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="sentence_tokens=0; expected at least 1"):
        Newline(sentence_tokens=0)


def test_newline_cuts_after_the_token_that_holds_the_newline() -> None:
    assert cut(Newline(), "a", "\n", "b", ".\n", "c") == (2, 4, 5)
    assert cut(Newline(), "a", "b\nc", "d") == (2, 3)


def test_an_end_of_sequence_token_belongs_to_the_last_step() -> None:
    assert cut(Newline(), "a", "\n", "b", eos=True) == (2, 4)
    assert cut(Newline(), "a", "\n", eos=True) == (3,)
    assert cut(Newline(), eos=True) == (1,)


def test_blank_lines_make_no_steps() -> None:
    assert cut(Newline(), "a", "\n", "\n", "b") == (3, 4)
    assert cut(Newline(), "a", "\n\n", "b", "\n", "\n") == (2, 5)
    assert cut(Newline(), "\n", "a", "\n", "b") == (3, 4)
    assert cut(Newline(), "\n", "\n") == (2,)


@pytest.mark.parametrize(
    "segmenter", [Newline(), Authors(), Sentence(), BlankLine(), FixedTokens(), LowProbability()], ids=repr
)
def test_an_empty_response_has_no_steps(segmenter) -> None:
    assert segmenter((), Words("a"), ()) == ()


def test_other_separators() -> None:
    assert cut(Sentence(), "It is 3", ".", "5", ".", " So", " (yes", "!)", " no", "\n", "x") == (4, 7, 9, 10)
    assert cut(BlankLine(), "a", "\n", "b", "\n", " ", "\n", "c", "\n\n", "d") == (6, 8, 9)


def test_authors_join_short_steps_and_limit_their_number() -> None:
    line = ["x"] * 9 + [".\n"]
    assert cut(Authors(), *line * 7) == (30, 70)
    assert cut(Authors(), *line * 2) == (20,)
    ends = cut(Authors(), *line * 120)
    assert len(ends) == 30
    assert ends[-1] == 1200
    assert min(after - before for before, after in pairwise(ends)) >= 30


def test_limits_of_any_segmenter() -> None:
    assert merge_short((1, 2, 5, 6, 7), 2) == (2, 5, 7)
    assert merge_short((1,), 5) == (1,)
    assert merge_short((), 5) == ()
    assert spread((1, 2, 3, 4, 5, 6, 7), 3) == (2, 4, 7)
    assert spread((1, 2), 3) == (1, 2)
    assert cut(Newline(min_step_tokens=3, max_steps=2), *["a", "\n"] * 6) == (4, 12)


def test_fixed_tokens() -> None:
    assert cut(FixedTokens(size=2), *"abcde") == (2, 4, 5)
    assert cut(FixedTokens(size=2), *"abcd") == (2, 4)


def test_low_probability_opens_a_step_at_every_nth_cut_point() -> None:
    logprobs = [-3.0, 0.0, -3.0, 0.0, -0.01, -3.0, 0.0]
    segment = LowProbability(probability=0.9, every=1)
    assert segment(range(7), Words(), logprobs) == (2, 5, 7)
    assert LowProbability(probability=0.9, every=2)(range(7), Words(), logprobs) == (5, 7)
    nan = float("nan")
    assert segment(range(7), Words(), [nan, nan, nan, *logprobs[3:]]) == (7,)
    with pytest.raises(ConfigError, match="logprobs=True"):
        segment(range(7), Words())


def test_the_pieces_of_a_token_are_decoded_once() -> None:
    tokenizer = Words("a", "\n")
    Newline()((0, 1) * 500, tokenizer)
    Newline()((0, 1) * 500, tokenizer)
    assert tokenizer.decoded == 4


def test_pieces_keep_leading_spaces_and_take_any_tokenizer() -> None:
    assert pieces((0, 1), Sentencepiece(" a", " b")) == [" a", " b"]

    class Unhashable(Words):
        __hash__ = None

    assert pieces((0, 1), Unhashable("a", "b")) == ["a", "b"]


def test_characters_split_over_tokens_do_not_move_a_boundary() -> None:
    text = "é∑\n数 = 3\n🙂"
    ends = Newline()(tuple(text.encode()), Bytes())
    assert [text.encode()[a:b].decode() for a, b in zip((0, *ends), ends, strict=False)] == ["é∑\n", "数 = 3\n", "🙂"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Newline(min_step_tokens=0),
        lambda: Newline(max_steps=0),
        lambda: FixedTokens(size=0),
        lambda: LowProbability(probability=0.0),
        lambda: LowProbability(every=0),
    ],
)
def test_limits_that_cannot_be(make) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        make()


TEXTS = ("a", " b", "\n", ".\n", "\n\n", ". ", "c\nd", " ", "?", "")


@given(
    st.lists(st.integers(0, len(TEXTS) - 1), min_size=1, max_size=60),
    st.sampled_from([Newline, Authors, Sentence, BlankLine, FixedTokens]),
    st.integers(1, 5),
    st.sampled_from([None, 1, 2, 7]),
)
def test_steps_joined_are_the_response_and_no_step_is_blank(tokens, kind, shortest, most) -> None:
    tokenizer = Words(*TEXTS)
    ends = kind(min_step_tokens=shortest, max_steps=most)(tuple(tokens), tokenizer)
    assert ends[-1] == len(tokens)
    steps = [tokens[begin:end] for begin, end in zip((0, *ends), ends, strict=False)]
    assert [token for step in steps for token in step] == tokens
    assert all(steps)
    assert most is None or len(steps) <= most
    if len(steps) > 1:
        assert all(len(step) >= shortest for step in steps[:-1]) or kind is FixedTokens
        if kind is not FixedTokens:
            assert all(tokenizer.decode(step).strip() for step in steps)
