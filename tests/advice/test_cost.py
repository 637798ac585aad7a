"""What a run takes: against counts by hand, against a model's own numbers, and against what a run counted."""

import json
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest

from gpo.advice.cost import GPUS, ModelShape, Work, gpu_hours, gpu_named, operations, shape_of, training_memory
from gpo.advice.work import Training
from gpo.config.models import reference
from gpo.config.options import resolve
from gpo.errors import ConfigError
from gpo.suites.outcome import ArmOutcome, Outcome, flops
from gpo.suites.suite import Cell

# Of Qwen2.5-7B's configuration.
SEVEN = ModelShape(7_615_616_512, 28, 3584, 18944, 4, 128, adapters=28 * 90_112, bytes=2)
WORK = Work(
    {"rollout": 600.0, "locate": 300.0, "reset": 100.0}, prompts=50.0, trained=2000.0, scored=500.0, context=1e3
)


def test_without_adapters_sampling_and_training_are_what_suites_count() -> None:
    done = operations(SEVEN, WORK)
    arm = ArmOutcome("gpo", (1.0,), 1000, 2000, {})
    row = Outcome("s", Cell("r", "m", 0), {}, ("q",), 1, (1.0,), (arm,), SEVEN.parameters, "0")
    assert done.sampling + done.training == flops(row, arm)
    assert done.prompts == 2 * SEVEN.parameters * 50
    assert done.total == SEVEN.parameters * (2 * 1000 + 2 * 50 + 6 * 2000 + 2 * 500)


def test_adapters_save_the_gradients_of_weights_and_checkpointing_costs_a_forward_pass() -> None:
    adapters = operations(SEVEN, WORK, lora=16)
    assert adapters.training == 2000 * (4 * SEVEN.parameters + 2 * 16 * SEVEN.adapters)
    twice = operations(SEVEN, WORK, lora=16, twice=True)
    assert twice.training - adapters.training == 2000 * 2 * SEVEN.parameters


def test_cache_and_memory_of_a_7b_model() -> None:
    assert SEVEN.kv_bytes(1) == 2 * 28 * 4 * 128 * 2  # 57 kB a token
    whole = training_memory(SEVEN, 4096, twice=True)
    assert (whole.weights, whole.gradients, whole.optimizer) == tuple(n * SEVEN.parameters for n in (4, 4, 8))
    lora = training_memory(SEVEN, 4096, lora=16, twice=True)
    assert lora.optimizer == 8 * 16 * SEVEN.adapters < 0.01 * whole.optimizer
    assert training_memory(SEVEN, 4096, lora=16).activations > 10 * lora.activations
    assert training_memory(SEVEN, 4096, models=2).weights == 2 * whole.weights


def test_hours_are_those_of_the_slower_of_arithmetic_and_reading() -> None:
    work = replace(WORK, sampled={"rollout": 1e9}, prompts=0.0, context=1000.0)
    done, gpu = operations(SEVEN, work), GPUS["h100"]
    hours = gpu_hours(SEVEN, work, done, gpu, bf16=True)
    assert hours.batch == 256
    assert hours.cache == 256 * SEVEN.kv_bytes(1000)
    step = (2 * SEVEN.parameters + hours.cache) / (0.6 * gpu.bandwidth)
    assert step > 256 * 2 * SEVEN.parameters / (0.4 * gpu.bf16)
    assert hours.sampling == pytest.approx(1e9 / 256 * step / 3600)
    assert hours.training == pytest.approx((done.training + done.scoring) / (0.4 * gpu.bf16) / 3600)
    assert gpu_hours(SEVEN, replace(work, context=9e5), done, gpu).batch == 1  # 52 GB of cache each
    assert gpu_hours(replace(SEVEN, parameters=10**11), work, done, gpu).total == inf


def test_hf_takes_what_was_measured() -> None:
    """Qwen2.5-Coder-0.5B with a head of its own on an H200: 42 thousand tokens a second with 1,120 rows."""
    half = ModelShape(630_167_424, layers=24, hidden=896, intermediate=4864, kv_heads=2, head_dim=64)
    work = replace(WORK, sampled={"rollout": 1e9}, prompts=0.0, context=350.0)
    hours = gpu_hours(half, work, operations(half, work), GPUS["h200"], hf=True)
    assert hours.batch == 1024
    assert 1e9 / (3600 * hours.sampling) == pytest.approx(42_000, rel=0.1)
    assert 5 * gpu_hours(half, work, operations(half, work), GPUS["h200"]).sampling < hours.sampling


def test_a_gpu_that_is_not_known_is_named_with_those_that_are() -> None:
    assert gpu_named("H100") is GPUS["h100"]
    with pytest.raises(ConfigError, match="a100, h100, h200"):
        gpu_named("tpu")


def test_the_shape_of_the_embedded_model_is_that_of_its_weights() -> None:
    ref = reference("reasoner")
    shape = shape_of(ref)
    assert shape is not None
    assert shape.parameters == 952_000  # the head is the embedding, and counts once
    assert (shape.layers, shape.hidden, shape.intermediate, shape.kv_heads, shape.head_dim) == (5, 128, 256, 4, 32)
    assert shape.adapters == 5 * (4 * (128 + 128) + 3 * (128 + 256))
    assert shape.bytes == 2


def test_what_is_no_language_model_has_no_shape(tmp_path: Path) -> None:
    assert shape_of(reference(str(tmp_path))) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    assert shape_of(reference(str(tmp_path))) is None


def test_adapters_have_the_shape_of_their_base(tmp_path: Path) -> None:
    base = reference("reasoner")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base.source)}))
    assert shape_of(reference(str(tmp_path))) == shape_of(base)


def test_the_example_of_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "advise.md").read_text(encoding="utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    exec(code, {})
    assert f"# {capsys.readouterr().out}" in code


def test_methods_that_look_once_more_are_counted() -> None:
    def looks(method: str, **settings: str) -> int:
        return Training.of(resolve({"method": method, **{f"method.{k}": v for k, v in settings.items()}})).looks

    assert [looks("grpo"), looks("ppo"), looks("dpo")] == [0, 1, 0]
    assert looks("grpo", minibatches="1", beta="0.1", kl_in="reward") == 1
    assert looks("kto", epochs="2") == 5  # with the one over the pairs: two of the reference and one of the policy


def test_adapters_are_weights_too_and_a_gpu_keeps_some_of_its_memory() -> None:
    lora = training_memory(SEVEN, 4096, lora=16)
    assert lora.weights == 4 * (SEVEN.parameters + 16 * SEVEN.adapters)
    work, gpu = replace(WORK, context=1.5e5), GPUS["h100"]
    done = operations(SEVEN, work)
    hours = gpu_hours(SEVEN, work, done, gpu)
    assert hours.batch == 6  # 0.9 of 80 GB less 15.2 GB of weights, 8.6 GB of cache each
    assert hours.training == pytest.approx((done.training + done.scoring) / (0.4 * gpu.float32) / 3600)
    assert hours.total == hours.sampling + hours.training
    assert gpu_hours(SEVEN, replace(work, context=2e6), done, gpu).total == inf  # no room for one


def test_heads_of_a_size_of_their_own_that_share_keys_are_counted_as_they_are(tmp_path: Path) -> None:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, **heads}
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 40, "dtype": "float32"}))
    shape = shape_of(reference(str(tmp_path)))
    assert shape is not None
    assert (shape.layers, shape.hidden, shape.kv_heads, shape.head_dim, shape.bytes) == (3, 16, 2, 8, 4)
    assert shape.kv_bytes(1) == 2 * 3 * 2 * 8 * 4
