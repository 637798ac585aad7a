"""Packed projections compute what the model's own do, and the engine packs what it has loaded itself only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gpo.engines import loading
from gpo.engines.contract import check_engine
from gpo.engines.hf import HFEngine
from gpo.engines.packing import PackedLinear, pack, packs
from gpo.types import ModelRef, Request

CONTEXTS = [(5, 9, 14, 3), (5, 9), (5, 9, 14) * 20]
needs_onednn = pytest.mark.skipif(
    not packs(torch.zeros(1)), reason="torch is built without oneDNN, and packs nothing then"
)
pytestmark = needs_onednn


@pytest.fixture
def saved(build: Any, word_tokenizer: Any, tmp_path: Path) -> Path:
    for family in ("qwen3-tied", "llama"):
        build(family).save_pretrained(tmp_path / family)
        word_tokenizer.save_pretrained(tmp_path / family)
    return tmp_path


def packed(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) is PackedLinear]


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_projection_is_the_same_product(dtype: torch.dtype, within: float, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 130, bias=bias).to(dtype)
    if not packs(linear.weight):
        pytest.skip("this CPU has no products of bfloat16")
    inputs = torch.randn(3, 70, 96).to(dtype)
    with torch.no_grad():
        product = PackedLinear(linear)(inputs)
        expected = linear.double()(inputs.double())
        assert product.shape == (3, 70, 130)
        assert product.dtype == dtype
        assert (product.double() - expected).abs().max() < within


def test_an_engine_packs_what_it_loads_and_samples_the_same(saved: Path, build: Any, word_tokenizer: Any) -> None:
    requests = [Request(context, 4, 12, seed) for seed, context in enumerate(CONTEXTS[:2])]
    engine = HFEngine(saved / "qwen3-tied", device="cpu", kernel="library")
    assert len(packed(engine.decoder().model)) == 3 * 7 + 1
    told = engine.generate(requests, logprobs=True)
    given = HFEngine(build("qwen3-tied"), word_tokenizer, kernel="library")
    assert packed(given.decoder().model) == []  # what was handed over is left as it is
    for group, other in zip(told, given.generate(requests, logprobs=True), strict=True):
        for one, same in zip(group, other, strict=True):
            assert one.token_ids == same.token_ids
            assert one.logprobs == pytest.approx(same.logprobs, abs=1e-4)


def test_a_packed_engine_fulfils_the_contract(saved: Path) -> None:
    engine = HFEngine(saved / "llama", device="cpu", kernel="library")
    assert engine.repeatable
    check_engine(engine, CONTEXTS)


def test_the_fused_decoder_keeps_its_projections(saved: Path) -> None:
    assert packed(HFEngine(saved / "llama", device="cpu").decoder().model) == []


def test_other_weights_are_packed_anew(saved: Path, build: Any, word_tokenizer: Any) -> None:
    engine = HFEngine(saved / "qwen3-tied", device="cpu", kernel="library")
    engine.load(ModelRef(saved / "llama", "llama"))
    assert len(packed(engine.decoder().model)) == 3 * 7 + 1
    request = Request(CONTEXTS[0], 3, 8, 0)
    assert engine.generate([request]) == HFEngine(build("llama"), word_tokenizer).generate([request])


def test_a_tied_head_is_packed_beside_its_embedding(build: Any) -> None:
    from copy import deepcopy

    model = deepcopy(build("qwen3-tied"))
    before = model.get_input_embeddings().weight.clone()
    pack(model)
    assert type(model.lm_head) is PackedLinear
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_types_without_a_product_stay(build: Any) -> None:
    from copy import deepcopy

    model = deepcopy(build("llama")).to(torch.float64)
    pack(model)
    assert packed(model) == []


@pytest.mark.parametrize(
    ("fast", "largest", "dtype"),
    [(True, 0, torch.bfloat16), (True, 10**9, torch.float32), (False, 0, torch.float32)],
)
def test_large_models_are_sampled_in_bfloat16_where_the_cpu_multiplies_it(
    fast: bool, largest: int, dtype: torch.dtype, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "multiplies_bfloat16", lambda: fast)
    monkeypatch.setattr(loading, "LARGEST", largest)
    engine = HFEngine(saved / "llama", device="cpu")
    assert {parameter.dtype for parameter in engine.decoder().model.parameters()} == {dtype}
    assert engine.repeatable == (dtype == torch.float32)
    exact = HFEngine(saved / "llama", device="cpu", dtype="float32")
    assert exact.repeatable
