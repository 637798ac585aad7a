"""Adapters on a pretrained model: pairs and groups that it sampled itself, in other types than it trains in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_questions import one_word

from gpo.engines.hf import HFEngine
from gpo.methods.dpo import DPO
from gpo.methods.grpo import GRPO
from gpo.preferences.pairs import build_pairs
from gpo.rollout.prompting import question_start
from gpo.rollout.sampler import Sampler
from gpo.types import Group, ModelRef, Pair, RoundContext


def sample(engine: HFEngine, folder: Path) -> Group:
    """Six short answers to one question, some of them right."""
    task = one_word(folder)
    problem = task.problems("train")[0]
    sampler = Sampler(engine, task, {problem.id: problem}, max_tokens=16, logprobs=True)
    [group] = sampler([question_start(problem, task, engine.tokenizer)], 6)
    assert {t.score.right for t in group.trajectories} == {True, False}
    return group


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def margin(engine: HFEngine, pair: Pair) -> float:
    """Nats by which the model prefers the chosen one."""
    chosen, rejected = engine.logprobs([pair.prompt_ids] * 2, [pair.chosen_ids, pair.rejected_ids])
    return sum(chosen) - sum(rejected)


def test_dpo_trains_adapters_on_pairs_of_the_model_and_the_engine_samples_with_them(
    engine: HFEngine, smollm2: Path, tmp_path: Path
) -> None:
    pairs = build_pairs([sample(engine, tmp_path)], engine.tokenizer, stop_ids=engine.stop_ids)[:2]
    method = DPO(str(smollm2), lora=4, learning_rate=2e-3, epochs=2, batch_size=2, warmup=0.0)
    metrics = method.update(pairs, RoundContext(metrics_path=tmp_path / "training.jsonl"))
    steps = rows(tmp_path / "training.jsonl")
    assert metrics["pairs"] == 2
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # policy and reference are one model
    assert steps[-1]["rewards/margins"] > 0.1
    method.save(tmp_path / "adapters")
    written = sum(file.stat().st_size for file in (tmp_path / "adapters").glob("*.safetensors"))
    assert written < 20e6  # the model has 270 MB
    before = margin(engine, pairs[0])
    engine.load(ModelRef(str(tmp_path / "adapters"), "trained"))
    after = margin(engine, pairs[0])
    engine.load(ModelRef(str(smollm2), "before"))
    assert after > before + 0.5


def test_the_policy_of_grpo_is_the_sampler_in_float32(engine: HFEngine, smollm2: Path, tmp_path: Path) -> None:
    method = GRPO(str(smollm2), lora=4, learning_rate=1e-3, epochs=2)
    metrics = method.update([sample(engine, tmp_path)], RoundContext())
    assert metrics["steps"] == 2
    assert metrics["kl"] > 0
    assert metrics["ratio_error"] < 1e-3
    assert metrics["importance_capped"] == 0


def test_what_bfloat16_sampled_is_weighed_in_grpo(smollm2: Path, tmp_path: Path) -> None:
    """The ratio of the first step is off by some percent, and written down; every second weight is above 1."""
    group = sample(HFEngine(str(smollm2), dtype="bfloat16"), tmp_path)
    method = GRPO(str(smollm2), lora=4, importance_cap=1.0)
    metrics = method.update([group], RoundContext(metrics_path=tmp_path / "training.jsonl"))
    [row] = rows(tmp_path / "training.jsonl")
    assert row["ratio_error"] == metrics["ratio_error"]
    assert 1e-3 < metrics["ratio_error"] < 2
    assert 0.05 < metrics["importance_capped"] < 0.95
