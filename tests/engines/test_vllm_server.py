"""The engine `openai` against a real vLLM server with the embedded reasoner."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpo.cli import main
from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.engines.contract import CHECKS
from gpo.engines.openai import OpenAIEngine
from gpo.errors import EngineError
from gpo.experiment.run import Run
from gpo.rollout.prompting import render
from gpo.tasks.generated import Generated
from gpo.types import ModelRef, Request
from vllm_server import PYTHON, vllm_server

REASONER = Path(__file__).parents[2] / "src/gpo/reasoner/weights"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason=f"needs vLLM at {PYTHON} (make vllm)")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with vllm_server(REASONER, tmp_path_factory.mktemp("vllm") / "log") as address:
        yield address


@pytest.fixture
def engine(url: str) -> Iterator[OpenAIEngine]:
    with OpenAIEngine(str(REASONER), url) as opened:
        yield opened


@pytest.fixture(scope="module")
def starts() -> list[tuple[int, ...]]:
    from gpo.engines.loading import load_tokenizer

    tokenizer, task = load_tokenizer(str(REASONER)), Generated()
    return [render(task.prompt(problem), tokenizer) for problem in task.problems("dev")[:3]]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Any, url: str, starts: list[tuple[int, ...]]) -> None:
    with OpenAIEngine(str(REASONER), url) as engine:
        full = (starts[0] * 1000)[: engine.context_length - 4]
        check(engine, [*starts, full])
        assert not engine.trouble


def test_log_probabilities_are_those_of_the_model(engine: OpenAIEngine, starts: list[tuple[int, ...]]) -> None:
    from gpo.engines.hf import HFEngine

    here = HFEngine(str(REASONER), device="cpu")
    requests = [Request(start, 4, 40, seed) for seed, start in enumerate(starts)]
    for temperature in (1.0, 0.7):
        answers = engine.generate(requests, temperature=temperature, logprobs=True)
        asked = [(r.token_ids, c) for r, group in zip(requests, answers, strict=True) for c in group]
        told = here.logprobs([c for c, _ in asked], [c.token_ids for _, c in asked], temperature=temperature)
        for (_, completion), nats in zip(asked, told, strict=True):
            assert completion.logprobs == pytest.approx(nats, abs=1e-3)
    greedy = [Request(start, 1, 40, 0) for start in starts]
    same = [
        a == b
        for a, b in zip(engine.generate(greedy, temperature=0.0), here.generate(greedy, temperature=0.0), strict=True)
    ]
    assert sum(same) >= len(same) - 1  # ties


def test_several_samples_of_a_request_are_as_different_as_single_ones(url: str, starts: list[tuple[int, ...]]) -> None:
    request = Request(starts[0], 16, 40, 3)
    counts = []
    for several in (1, 16):
        with OpenAIEngine(str(REASONER), url, samples_per_request=several) as engine:
            [answers] = engine.generate([request])
            counts.append(len({completion.token_ids for completion in answers}))
    assert min(counts) > 5


def test_a_checkpoint_and_adapters_are_sampled_from(
    engine: OpenAIEngine, starts: list[tuple[int, ...]], tmp_path: Path
) -> None:
    import torch

    from gpo.engines.hf import HFEngine
    from gpo.methods.policy import load_policy, save_policy

    def expect(source: Path) -> None:
        here = HFEngine(str(source), tokenizer=str(REASONER), device="cpu")
        engine.load(ModelRef(str(source), str(source)))
        nats = engine.logprobs([starts[0]], [starts[1][:20]])
        assert nats[0] == pytest.approx(here.logprobs([starts[0]], [starts[1][:20]])[0], abs=2e-3)
        [[completion]] = engine.generate([Request(starts[0], 1, 20, 0)], logprobs=True)
        [told] = here.logprobs([starts[0]], [completion.token_ids])
        assert completion.logprobs == pytest.approx(told, abs=2e-3)

    policy = load_policy(ModelRef(str(REASONER), "reasoner"), own=True, lora=4)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    save_policy(policy, tmp_path / "adapters")
    save_policy(policy, tmp_path / "whole", merge=True)
    for source in (REASONER, tmp_path / "adapters", tmp_path / "whole", REASONER):
        expect(source)
    shutil.rmtree(tmp_path / "adapters")
    with pytest.raises(EngineError, match="There is no model in"):
        engine.load(ModelRef(str(tmp_path / "adapters"), "gone"))


@pytest.mark.parametrize("method", [("dpo", {}), ("grpo", {"lora": 4})], ids=["whole", "lora"])
def test_a_run_samples_on_the_server_and_trains_here(url: str, tmp_path: Path, method: Any) -> None:
    name, settings = method
    config = RunConfig(
        engine=Spec("engine", "openai", {"base_url": url}),
        method=Spec("method", name, settings),
        arms={"plain": "none"},
        problems=9,
        rollouts=4,
        rounds=2,
        test_problems=9,
        test_samples=1,
        max_tokens=160,
    )
    run = Run(tmp_path / "run", config)
    run.all()
    assert len(run.files.evaluation("plain").read()) == 9
    assert not run.files.events.trouble()
    checkpoint = run.files.model("plain")
    assert (checkpoint / "adapter_config.json").exists() is ("lora" in settings)
    run.engine.release()


def test_one_trajectory_is_searched_on_the_server(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    problem = Generated().problems("dev")[0]
    words = ["--engine", "openai", "--engine.base_url", url, "--max_tokens", "160"]
    assert main(["locate", "--question", problem.question, "--answer", problem.answer, *words]) == 0
    assert capsys.readouterr().out
