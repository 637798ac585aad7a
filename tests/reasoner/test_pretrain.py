"""Pretraining: the written-out forward pass is the library's, and a run that was cut short goes on the same."""

from __future__ import annotations

import json
from itertools import count, repeat
from pathlib import Path
from random import Random

import pytest
import torch

from gpo.reasoner import pretrain
from gpo.reasoner.decoder import Decoder, Shape, library_model
from gpo.reasoner.example import Example
from gpo.reasoner.pretrain import LETTERS, Pretraining, Settings, family, pool, steps
from gpo.reasoner.tokenizer import build

TINY = Shape(width=32, layers=2, heads=1, hidden=32)


def settings(out: Path, tokens: int) -> Settings:
    return Settings(out, tokens=tokens, step_tokens=1024, micro_tokens=512, checkpoint_seconds=0.0, compile=False)


def test_the_forward_pass_equals_the_library() -> None:
    torch.manual_seed(0)
    model = library_model(TINY)
    ids = torch.randint(0, TINY.vocabulary, (3, 17))
    ours = Decoder(model, TINY, dtype=torch.float32).logits(ids)
    torch.testing.assert_close(ours, model(ids).logits, rtol=1e-4, atol=1e-5)


def test_the_loss_weights_questions_less_letters_more_and_padding_not_at_all() -> None:
    tokenizer = build(examples=40)
    letters = set(tokenizer.convert_tokens_to_ids(LETTERS))
    rng = Random(0)
    batches = pool(tokenizer, (family(rng, 0.5) for _ in count()), rng, tokens=4000, micro=512)
    for ids, weights in batches:
        assert ids.shape == weights.shape
        assert set(weights.unique().tolist()) <= {0.0, pretrain.PROMPT_WEIGHT, 1.0, pretrain.LETTER_WEIGHT}
        for row, weight in zip(ids, weights, strict=True):
            assert set(row[weight == pretrain.LETTER_WEIGHT].tolist()) <= letters
            text = tokenizer.decode(row[weight >= 1.0])
            assert text.endswith("<|end|>")
            assert "<|assistant|>" in tokenizer.decode(row[weight == pretrain.PROMPT_WEIGHT])
            assert not row[weight == 0].any()


def test_what_somebody_else_wrote_has_no_loss() -> None:
    tokenizer = build(examples=40)
    example = Example("1 + 1 =", "So the answer is 2", "2", given="One and one.\n")
    ((ids, weights),) = pool(tokenizer, repeat(example), Random(0), tokens=5, micro=64)
    assert tokenizer.decode(ids[0][weights[0] == 0]).replace("<|pad|>", "") == "One and one.\n"
    assert tokenizer.decode(ids[0][weights[0] == 1]) == "So the answer is 2<|end|>"


def test_a_step_gathers_batches_up_to_its_size() -> None:
    batch = (torch.zeros(4, 100, dtype=torch.long), torch.ones(4, 100))
    assert [len(step) for step in steps([batch] * 7, 800)] == [2, 2, 2]


@pytest.mark.filterwarnings("ignore")
def test_training_goes_on_where_it_was_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Pretraining(settings(tmp_path / "whole", 30_000), TINY)
    whole.run()

    class Cut(Exception):
        pass

    cut = Pretraining(settings(tmp_path / "cut", 30_000), TINY)
    save = cut.save

    def save_and_die() -> None:
        save()
        raise Cut

    monkeypatch.setattr(cut, "save", save_and_die)
    with pytest.raises(Cut):
        cut.run()
    assert cut.seen < 30_000
    resumed = Pretraining(settings(tmp_path / "cut", 30_000), TINY)
    resumed.run()
    assert resumed.seen == whole.seen
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], value, rtol=0, atol=0)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "pretraining.jsonl").read_text().splitlines()]
    assert all(row["loss"] > 0 for row in rows)
    assert (tmp_path / "cut" / "model" / "model.safetensors").exists()
