"""Checkpoints have the type of the model they came from; between rounds nothing is rounded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_online import mixed_groups
from tiny_policy import make_model, make_pairs, make_tokenizer, same, state
from transformers import AutoModelForCausalLM

from gpo.methods.dpo import DPO
from gpo.methods.grpo import GRPO
from gpo.methods.policy import save_policy, saved_state
from gpo.methods.update_checkpoint import UpdateCheckpoint
from gpo.types import ModelRef, RoundContext


def start(path: Path, dtype: torch.dtype, **changes: Any) -> Path:
    model = make_model()
    if changes:
        model = type(model)(type(model.config)(**{**model.config.to_dict(), **changes}))
    model.to(dtype).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def data(kind: Any) -> Any:
    return make_pairs(4) if kind is DPO else mixed_groups()


def dtypes(path: Path) -> set[torch.dtype]:
    return {weights.dtype for weights in load_file(path / "model.safetensors").values()}


def told(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "config.json").read_text())
    return found


@pytest.mark.parametrize("kind", [DPO, GRPO])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_whole_weights_are_saved_as_they_came(tmp_path: Path, kind: Any, dtype: torch.dtype, tied: bool) -> None:
    begun = start(tmp_path / "start", dtype, tie_word_embeddings=tied)
    method = kind(begun, learning_rate=1e-2)
    method.update(data(kind))
    method.save(tmp_path / "saved")
    assert {weights.dtype for weights in state(method.policy.model)} == {torch.float32}
    assert dtypes(tmp_path / "saved") == {dtype}
    assert told(tmp_path / "saved")["dtype"] == str(dtype).removeprefix("torch.")
    assert "checkpoint_dtype" not in told(tmp_path / "saved")
    sizes = [(path / "model.safetensors").stat().st_size for path in (begun, tmp_path / "saved")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert same(state(loaded), [weights.to(dtype).float() for weights in state(method.policy.model)])


@pytest.mark.parametrize("kind", [DPO, GRPO])
def test_between_rounds_nothing_is_lost_and_the_last_one_is_rounded(tmp_path: Path, kind: Any) -> None:
    context = RoundContext(ModelRef(start(tmp_path / "start", torch.bfloat16), "s"), last=False)
    first = kind(learning_rate=1e-2)
    first.update(data(kind), context)
    first.save(tmp_path / "one")
    assert dtypes(tmp_path / "one") == {torch.float32}
    assert told(tmp_path / "one")["dtype"] == "float32"
    second = kind(learning_rate=1e-2)
    second.update(data(kind), RoundContext(ModelRef(tmp_path / "one", "s"), number=2, last=False))
    second.save(tmp_path / "two")
    assert dtypes(tmp_path / "two") == {torch.float32}
    third = kind(learning_rate=1e-2)
    third.update(data(kind), RoundContext(ModelRef(tmp_path / "two", "s"), number=3))
    first.update(data(kind))
    first.update(data(kind))
    assert same(state(first.policy.model), state(third.policy.model))
    third.save(tmp_path / "three")
    assert dtypes(tmp_path / "three") == {torch.bfloat16}
    assert "checkpoint_dtype" not in told(tmp_path / "three")


def test_a_model_of_a_round_in_memory_is_trained_in_float32_and_saved_as_it_came(tmp_path: Path) -> None:
    model = make_model().bfloat16()
    method = DPO(learning_rate=1e-2)
    method.update(make_pairs(4), RoundContext(ModelRef(model, "m", tokenizer=make_tokenizer())))
    assert {weights.dtype for weights in state(method.policy.model)} == {torch.float32}
    method.save(tmp_path / "saved")
    assert dtypes(tmp_path / "saved") == {torch.bfloat16}


def test_merged_adapters_have_the_type_of_their_base(tmp_path: Path) -> None:
    method = DPO(start(tmp_path / "start", torch.bfloat16), lora=2, merge=True, learning_rate=1e-2)
    method.update(make_pairs(4))
    method.save(tmp_path / "merged")
    assert dtypes(tmp_path / "merged") == {torch.bfloat16}
    method.merge = False
    method.save(tmp_path / "adapters")
    card = (tmp_path / "adapters/README.md").read_text()
    assert "# LoRA adapters" in card
    assert f"- Base model: `{tmp_path / 'start'}`" in card
    further = DPO(tmp_path / "adapters", merge=True)
    further.save(tmp_path / "further")
    assert dtypes(tmp_path / "further") == {torch.bfloat16}


def test_the_card_of_adapters_says_how_they_were_made(tmp_path: Path) -> None:
    settings = {"arm": "random", "task": {"name": "gsm8k", "shots": 4}}
    method = GRPO(lora=2)
    method.update(data(GRPO), RoundContext(ModelRef(start(tmp_path / "start", torch.float32), "s"), settings=settings))
    method.save(tmp_path / "adapters")
    card = (tmp_path / "adapters/README.md").read_text()
    assert "Method: GRPO\n- Arm: random\n- Task: `gsm8k`\n- Made by: gpo " in card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == str(tmp_path / "start")
    method = GRPO(start(tmp_path / "whole", torch.float32))
    method.save(tmp_path / "model")
    assert not (tmp_path / "model/README.md").exists()


def test_a_checkpoint_is_there_in_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = DPO(make_model(), make_tokenizer()).policy
    save_policy(policy, tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(type(policy.tokenizer), "save_pretrained", fails)
    with pytest.raises(OSError, match="no space left"):
        save_policy(policy, tmp_path / "model")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def test_what_a_gpu_has_saved_is_read_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = GRPO(start(tmp_path / "start", torch.float32), learning_rate=1e-2)
    method.update(mixed_groups(), RoundContext(work_dir=tmp_path / "unfinished"))
    checkpoint = UpdateCheckpoint(tmp_path / "unfinished", "one")
    checkpoint.save(method._parameters(), method.optimizer, [{"loss": 1.0}])
    method.save(tmp_path / "saved")
    checkpoint.save(method._parameters(), method.optimizer, [{"loss": 1.0}])
    places: list[Any] = []
    load = torch.load

    def noted(*given: Any, **options: Any) -> Any:
        places.append(options.get("map_location"))
        return load(*given, **options)

    monkeypatch.setattr(torch, "load", noted)
    assert saved_state(tmp_path / "saved")["updates"] == 1
    assert checkpoint.load(method._parameters(), method.optimizer) == [{"loss": 1.0}]
    assert places == ["cpu", "cpu"]
