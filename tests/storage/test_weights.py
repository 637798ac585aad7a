"""Checkpoints that lack tensors, or have others, are refused with their names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, LlamaConfig, LlamaForCausalLM

from gpo.errors import EngineError
from gpo.estimators.gradient import loaded
from gpo.storage.weights import check_files, check_report, load_checked
from gpo.types import ModelRef

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

UP = "model.layers.1.mlp.up_proj.weight"
ADAPTER = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
State = dict[str, torch.Tensor]
Change = Callable[[State], Any]


def tiny(**fields: Any) -> LlamaForCausalLM:
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **shape, **fields))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, and adapters of it."""
    folder = tmp_path_factory.mktemp("saved")
    tiny().save_pretrained(folder / "model")
    adapted = get_peft_model(tiny(), LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "model")
    adapted.save_pretrained(folder / "adapters")
    return folder


def changed(directory: Path, change: Change) -> str:
    [file] = directory.glob("*.safetensors")
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})
    return str(directory)


def without(*names: str) -> Change:
    return lambda state: [state.pop(name) for name in names]


def with_one(name: str, *shape: int) -> Change:
    return lambda state: state.update({name: torch.zeros(shape)})


def half(state: State) -> None:
    for name in sorted(state)[::2]:
        del state[name]


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("model", without(UP), rf"model' .*tensors 1 missing \({UP}\)"),
        ("model", half, r"tensors 11 missing \(lm_head.weight, .*, .* and 8 more\)"),
        ("model", with_one("model.extra.weight", 3), r"tensors 1 unknown \(model.extra.weight\)"),
        ("model", with_one(UP, 2, 5), rf"tensors 1 of another shape \({UP} 2x5 for 24x16\)"),
        ("adapters", without(ADAPTER), rf"adapters' .*tensors 1 missing \({ADAPTER}\)"),
        ("adapters", with_one(ADAPTER.replace("up_proj", "side"), 3), r"tensors 1 unknown \(.*side"),
        ("adapters", with_one(ADAPTER, 3, 5), rf"tensors 1 of another shape \({ADAPTER} 3x5 for 3x16\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    kind: str, change: Change, message: str, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / kind, tmp_path / kind)
    with pytest.raises(EngineError, match=message):
        load_checked(changed(tmp_path / kind, change))


def test_adapters_do_not_hide_that_their_base_is_not_whole(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "copy")
    changed(tmp_path / "copy" / "model", without(UP))
    config = tmp_path / "copy" / "adapters" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(saved), str(tmp_path / "copy")))
    with pytest.raises(EngineError, match=rf"model' .*1 missing \({UP}\)"):
        load_checked(str(tmp_path / "copy" / "adapters"))


def test_a_search_reads_weights_that_are_whole_or_none(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=rf"1 missing \({UP}\)"):
        loaded(changed(Path(shutil.copytree(saved / "model", tmp_path / "copy")), without(UP)))
    assert loaded(saved / "adapters").get_decoder().layers[0].self_attn.q_proj.lora_A
    model = loaded(ModelRef(str(saved / "model"), "model"))
    assert loaded(model) is model


def test_what_is_whole_is_loaded(saved: Path) -> None:
    state = load_file(saved / "model" / "model.safetensors")
    model = load_checked(str(saved / "model"), dtype="float32")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    for trainable in (False, True):
        adapted = load_checked(str(saved / "adapters"), trainable=trainable)
        assert any(p.requires_grad for n, p in adapted.named_parameters() if "lora_A" in n) == trainable


def test_a_tied_head_may_be_absent_and_what_a_model_ignores_may_be_there(tmp_path: Path) -> None:
    tiny(tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    head = load_checked(str(tmp_path / "tied")).lm_head.weight
    assert torch.equal(head, load_file(tmp_path / "tied" / "model.safetensors")["model.embed_tokens.weight"])

    from transformers import GPT2LMHeadModel

    config = GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    old = "transformer.h.0.attn.bias"  # the mask, which former versions saved
    assert load_checked(changed(tmp_path / "gpt2", with_one(old, 1)))


@pytest.mark.parametrize("kind", ["model", "adapters"])
@pytest.mark.parametrize("left", [0, 40, -100])
def test_a_truncated_file_is_named(kind: str, left: int, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / kind, tmp_path / kind)
    [file] = (tmp_path / kind).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(EngineError, match=rf"{file} cannot be read .*truncated or damaged"):
        load_checked(str(tmp_path / kind))
    with pytest.raises(EngineError, match=str(file)):
        check_files(tmp_path / kind)


def test_several_kinds_of_fault_are_told_at_once() -> None:
    report = {
        "missing_keys": {"d", "b", "a", "c"},
        "unexpected_keys": ["x"],
        "mismatched_keys": [("n", torch.Size([]), torch.Size([3, 1]))],
    }
    with pytest.raises(EngineError) as caught:
        check_report(report, "there")
    expected = "tensors 4 missing (a, b, c and 1 more); 1 unknown (x); 1 of another shape (n scalar for 3x1)."
    assert expected in str(caught.value)


@pytest.mark.parametrize("content", ["{}", "[", '{"model_type": "llama", "vocab_size": "many"}'])
def test_a_configuration_that_is_none_is_an_engine_error(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(EngineError, match="No causal language model in"):
        load_checked(str(tmp_path))
