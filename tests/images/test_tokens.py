"""Image tokens among token ids: two images are two sequences for everybody who compares ids."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gpo.engines.prefixes import shared_prompts
from gpo.engines.requests import check_tokens
from gpo.errors import DataError, EngineError
from gpo.images.tokens import FIRST, has_images, image_tokens, images_in, name_of, spelled
from gpo.methods.policy import check_token_ids
from gpo.methods.tree import common_prefix
from gpo.preferences.dataset import to_table
from gpo.rollout.journal import Journal
from gpo.rollout.sampler import request_seed
from gpo.storage.codec import from_json, to_json
from gpo.types import ModelRef, Request, Start

RED, BLUE = "00000000000a", "ffffffffffff"


def prompt(name: str) -> tuple[int, ...]:
    return (5, 6, *image_tokens(name, 9), 7)


def test_a_token_tells_its_image_and_is_an_integer_of_64_bits() -> None:
    for name in (RED, BLUE):
        ids = image_tokens(name, 1 << 14)
        assert {name_of(token) for token in ids[:3] + ids[-3:]} == {name}
        assert FIRST <= min(ids) < max(ids) < 1 << 63
        assert len(set(ids)) == 1 << 14


def test_images_are_named_in_order_and_twice_if_they_are_there_twice() -> None:
    ids = prompt(BLUE) + prompt(RED) + image_tokens(RED, 9) + image_tokens(RED, 9)
    assert images_in(ids) == (BLUE, RED, RED, RED)
    assert images_in((5, 6)) == ()
    assert not has_images((5, 6))
    assert not has_images(())
    assert spelled(ids, 3) == [5, 6, 3, 7, 5, 6, 3, 7, 3, 3]


def test_two_images_with_the_same_placeholders_are_two_starts() -> None:
    red, blue = Start("p", prompt(RED)), Start("p", prompt(BLUE))
    assert red.key != blue.key
    assert request_seed(0, "rollout", red.token_ids, 0) != request_seed(0, "rollout", blue.token_ids, 0)
    assert common_prefix(red.token_ids, blue.token_ids) == 2
    assert len(shared_prompts([red.token_ids, blue.token_ids])) == 2
    assert len(shared_prompts([red.token_ids, red.token_ids])) == 1


def test_a_journal_keeps_them_apart() -> None:
    class Named:
        model_ref = ModelRef("m", "m")

    journal = object.__new__(Journal)
    journal.engine = Named()
    red, blue = (Request(prompt(name), 4, 8, 1) for name in (RED, BLUE))
    assert journal._key(red, 1.0, False) != journal._key(blue, 1.0, False)
    assert journal._key(red, 1.0, False) == journal._key(replace(red), 1.0, False)


def test_they_are_stored_and_read_and_other_large_numbers_are_refused() -> None:
    start = Start("p", prompt(RED), (1, 2), "t")
    assert from_json(Start, to_json(start)) == start
    for stray in (2**31, FIRST - 1, 2**63, -1, 1.5, True):
        with pytest.raises(DataError, match="whole numbers"):
            from_json(Start, {**to_json(start), "prompt_ids": [5, stray]})


def test_only_a_table_with_images_has_wide_ids() -> None:
    row = {"prompt_ids": list(prompt(RED)), "chosen_ids": [3], "provenance": {}}
    assert str(to_table([row]).schema.field("prompt_ids").type.value_type) == "int64"
    assert to_table([row]).to_pylist()[0]["prompt_ids"] == list(prompt(RED))
    assert str(to_table([{**row, "prompt_ids": [5]}]).schema.field("prompt_ids").type.value_type) == "int32"


def test_the_text_beside_images_is_held_against_the_vocabulary_of_a_model_in_training() -> None:
    model: Any = torch.nn.Module()
    model.get_input_embeddings = lambda: model.embedding
    model.embedding = torch.nn.Embedding(8, 1)
    model.embedding.forward = model.embedding.forward  # as `see` leaves it
    check_token_ids(model, iter([prompt(RED), (), (1, 2)]))
    with pytest.raises(DataError, match="Token id 8 is outside the model's vocabulary of 8 tokens"):
        check_token_ids(model, iter([(*prompt(RED), 8)]))


def test_an_engine_without_eyes_says_so() -> None:
    with pytest.raises(EngineError, match="has an image, and this engine or its model takes none"):
        check_tokens("Request 0", prompt(RED), 10)
    check_tokens("Request 0", prompt(RED), 10, images=True)
    with pytest.raises(EngineError, match="token ids from 5 to 7, expected 0 to 6"):
        check_tokens("Request 0", prompt(RED), 7, images=True)
