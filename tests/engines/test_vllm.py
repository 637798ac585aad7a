"""The engine `vllm` on a fake of vLLM, and in vLLM's own environment where there is one (`make vllm`)."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fake_vllm
from gpo.contracts import RestingEngine
from gpo.engines.contract import CHECKS
from gpo.engines.vllm import VLLMEngine
from gpo.errors import ConfigError, EngineError, MissingDependency
from gpo.types import ModelRef, Request
from vllm_server import ENVIRONMENT, PYTHON

CONTEXTS = [(5, 9, 14, 3), (5, 9), (5, 9, 14) * 20]  # the last one all but fills 64 tokens
ASKED = [Request((5, 9), 4, 12, 1), Request((7,), 2, 12, 2)]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch, sleeps=True)


@pytest.fixture
def engine(fake: None, served_model: Path) -> Iterator[VLLMEngine]:
    with VLLMEngine(str(served_model)) as opened:
        yield opened


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., ModelRef]:
    """A checkpoint whose weights are a text; with `base` it holds adapters for that model."""

    def saved(name: str, base: Path | None = None) -> ModelRef:
        (tmp_path / name).mkdir()
        (tmp_path / name / "seed").write_text(name)
        text = "{}" if base is None else f'{{"base_model_name_or_path": "{base}"}}'
        (tmp_path / name / ("config.json" if base is None else "adapter_config.json")).write_text(text)
        return ModelRef(str(tmp_path / name), name)

    return saved


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Any, engine: VLLMEngine) -> None:
    check(engine, CONTEXTS)


def test_new_weights_are_sampled_from_and_old_keys_are_forgotten(
    engine: VLLMEngine, served_model: Path, save: Callable[..., ModelRef]
) -> None:
    [llm] = fake_vllm.MADE
    first = engine.generate(ASKED)
    found = [first]
    for ref in (save("whole"), save("adapters", served_model), save("other", served_model)):
        llm.calls.clear()
        engine.load(ref)
        assert llm.calls == (["reload_weights", "reset_prefix_cache"] if ref.name in ("whole", "adapters") else [])
        found.append(engine.generate(ASKED))
        assert engine.model_ref == ref
    assert all(found.count(each) == 1 for each in found)
    assert sorted(llm.known) == [1, 2]
    # An adapter's number stands for its files: the same directory with others in it is another version.
    os.utime(Path(ref.source) / "seed", ns=(1, 1))
    engine.load(ref)
    assert engine.generate(ASKED) == found[-1]
    assert sorted(llm.known) == [1, 2, 3]
    engine.load(ModelRef(str(served_model), "first"))
    assert engine.generate(ASKED) == first
    assert [llm] == fake_vllm.MADE


def test_answers_of_other_weights_are_refused(
    engine: VLLMEngine, served_model: Path, save: Callable[..., ModelRef]
) -> None:
    engine.load(save("adapters", served_model))
    fake_vllm.MADE[0].stale = True
    with pytest.raises(EngineError, match="answered with the adapters"):
        engine.generate(ASKED)


def test_it_rests_and_goes_on_with_the_same_weights(
    engine: VLLMEngine, served_model: Path, save: Callable[..., ModelRef]
) -> None:
    assert isinstance(engine, RestingEngine)
    [llm] = fake_vllm.MADE
    engine.load(save("whole"))
    before = engine.generate(ASKED)
    engine.rest()
    engine.rest()
    assert llm.calls[-1] == "sleep 1"
    assert engine.generate(ASKED) == before
    assert llm.calls[-2:] == ["wake_up", "generate"]
    engine.rest()
    engine.load(save("later"))
    assert llm.calls[-3:] == ["wake_up", "reload_weights", "reset_prefix_cache"]
    assert engine.generate(ASKED) != before


def test_where_vllm_cannot_sleep_it_ends_and_is_made_again(
    monkeypatch: pytest.MonkeyPatch, served_model: Path, save: Callable[..., ModelRef]
) -> None:
    fake_vllm.install(monkeypatch, sleeps=False)
    with VLLMEngine(str(served_model), options={"max_model_len": 40}) as engine:
        assert engine.context_length == 40
        engine.load(save("whole"))
        before = engine.generate(ASKED)
        engine.rest()
        assert fake_vllm.MADE[0].calls[-1] == "shutdown"
        assert engine.generate(ASKED) == before
        assert len(fake_vllm.MADE) == 2
        assert not fake_vllm.MADE[1].more["enable_sleep_mode"]
    assert fake_vllm.MADE[1].calls[-1] == "shutdown"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora": -1}, "lora, tensor_parallel and gpu_memory are -1"),
        ({"gpu_memory": 1.5}, "and 1.5; expected"),
        ({"model": None}, "has no model"),
    ],
)
def test_bad_settings_are_refused(fake: None, served_model: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VLLMEngine(**{"model": str(served_model), **settings})


def test_adapters_are_refused_where_none_are_taken(
    fake: None, served_model: Path, save: Callable[..., ModelRef]
) -> None:
    with VLLMEngine(str(served_model), lora=0) as engine:
        with pytest.raises(EngineError, match=r"Give --engine.lora"):
            engine.load(save("adapters", served_model))
        assert "enable_lora" not in fake_vllm.MADE[0].more


def test_without_vllm_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, served_model: Path) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingDependency, match=r"pip install vllm.*--engine openai"):
        VLLMEngine(str(served_model))


SCRIPT = """
import json, sys
from gpo.engines.contract import check_engine
from gpo.engines.vllm import VLLMEngine
from gpo.types import ModelRef, Request

if __name__ == "__main__":
    model, *others = sys.argv[1:]
    options = {"enforce_eager": True, "enable_chunked_prefill": False, "max_num_batched_tokens": 8192}
    engine = VLLMEngine(model, dtype="float32", options=options)
    starts = [tuple(engine.tokenizer.encode(text, add_special_tokens=False)) for text in ("1 + 1", "2 * 3 - 4")]
    for source in (model, *others, model):
        engine.load(ModelRef(source, source))
        if source == others[0]:
            engine.rest()  # it is made again, with these weights
        [found] = engine.generate([Request(starts[0], 4, 20, 0)], temperature=0.7, logprobs=True)
        print(json.dumps([source, starts[0], [[each.token_ids, each.logprobs] for each in found]]))
    check_engine(engine, [*starts, (starts[0] * 1000)[: engine.context_length - 4]])
"""


@pytest.mark.skipif(not PYTHON.exists(), reason=f"needs vLLM at {PYTHON} (make vllm)")
def test_in_the_environment_of_vllm(tmp_path: Path) -> None:
    """The contract, and what it tells of several weights beside what `hf` tells of them."""
    import torch

    from gpo.engines.hf import HFEngine
    from gpo.methods.policy import load_policy, save_policy

    source = Path(__file__).parents[2] / "src"
    reasoner = str(source / "gpo/reasoner/weights")
    policy = load_policy(ModelRef(reasoner, "reasoner"), own=True, lora=4)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_policy(policy, tmp_path / "adapters")
    save_policy(policy, tmp_path / "whole", merge=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    settings = {
        "PYTHONPATH": str(source),
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "KMP_BLOCKTIME": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{ENVIRONMENT / 'bin'}:{os.environ.get('PATH', '')}",
    }
    words = [str(PYTHON), str(tmp_path / "script.py"), reasoner, str(tmp_path / "adapters"), str(tmp_path / "whole")]
    done = subprocess.run(words, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(line) for line in done.stdout.split("\n") if line.startswith("[")]
    assert [row[0] for row in rows] == [*words[2:], reasoner]
    for checkpoint, start, found in rows:
        here = HFEngine(checkpoint, tokenizer=reasoner, device="cpu")
        told = here.logprobs([start] * len(found), [ids for ids, _ in found], temperature=0.7)
        for (_, nats), expected in zip(found, told, strict=True):
            assert nats == pytest.approx(expected, abs=2e-3)


def test_a_copy_takes_vllm_over(engine: VLLMEngine, served_model: Path, save: Callable[..., ModelRef]) -> None:
    [llm] = fake_vllm.MADE
    engine.load(save("adapters", served_model))
    before = engine.generate(ASKED)
    twin = copy.copy(engine)
    assert twin.generate(ASKED) == before
    assert [llm] == fake_vllm.MADE
    twin.close()
    assert llm.calls[-1] == "shutdown"
    assert engine.generate(ASKED) == before
    assert len(fake_vllm.MADE) == 2
