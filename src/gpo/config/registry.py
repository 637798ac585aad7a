"""Names for the command line: dictionaries from a name to "module:Class".

Adding a task, an engine, an estimator or a method is one new file and one line here. Python users pass instances.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from gpo.errors import unknown

TASKS: dict[str, str] = {
    "aime24": "gpo.tasks.aime:AIME24",
    "aime25": "gpo.tasks.aime:AIME25",
    "bbh": "gpo.tasks.bbh:BBH",
    "chain": "gpo.toy:ChainTask",
    "file": "gpo.tasks.file:File",
    "gsm8k": "gpo.tasks.gsm8k:GSM8K",
    "math": "gpo.tasks.math:MATH",
    "mmlu": "gpo.tasks.mmlu:MMLU",
    "mmlu_pro": "gpo.tasks.mmlu:MMLUPro",
    "question": "gpo.tasks.question:Question",
    "reasoner": "gpo.tasks.generated:Generated",
    "reasoning_gym": "gpo.tasks.reasoning_gym:ReasoningGym",
    "squares": "gpo.tasks.squares:Squares",
}

ENGINES: dict[str, str] = {
    "hf": "gpo.engines.hf:HFEngine",
    "openai": "gpo.engines.openai:OpenAIEngine",
    "ray": "gpo.engines.ray:RayEngine",
    "vllm": "gpo.engines.vllm:VLLMEngine",
    "chain": "gpo.toy:ChainEngine",
}

ESTIMATORS: dict[str, str] = {
    "none": "gpo.estimators.none:NoReset",
    "random_matched": "gpo.estimators.matched:MatchedRandom",
    "random_unsearched": "gpo.estimators.random:RandomStep",
    "monte_carlo": "gpo.estimators.monte_carlo:MonteCarlo",
    "bisect": "gpo.estimators.bisect:Bisect",
    "halfway": "gpo.estimators.halfway:Halfway",
    "adaptive": "gpo.estimators.adaptive:Adaptive",
    "entropy": "gpo.estimators.entropy:Entropy",
    "critic": "gpo.estimators.critic:Critic",
    "probe": "gpo.estimators.probe:Probe",
    "gradient": "gpo.estimators.gradient:Gradient",
}

METHODS: dict[str, str] = {
    "dpo": "gpo.methods.dpo:DPO",
    "kto": "gpo.methods.kto:KTO",
    "simpo": "gpo.methods.simpo:SimPO",
    "orpo": "gpo.methods.orpo:ORPO",
    "ppo": "gpo.methods.ppo:PPO",
    "grpo": "gpo.methods.grpo:GRPO",
    "rloo": "gpo.methods.rloo:RLOO",
}

SEGMENTERS: dict[str, str] = {
    "newline": "gpo.rollout.segmenters:Newline",
    "authors": "gpo.rollout.segmenters:Authors",
    "sentence": "gpo.rollout.segmenters:Sentence",
    "blank_line": "gpo.rollout.segmenters:BlankLine",
    "fixed_tokens": "gpo.rollout.segmenters:FixedTokens",
    "low_probability": "gpo.rollout.segmenters:LowProbability",
}

REGISTRIES = {"task": TASKS, "engine": ENGINES, "segmenter": SEGMENTERS, "estimator": ESTIMATORS, "method": METHODS}


def lookup(kind: str, name: str) -> Any:
    """The class behind `name` in the registry of `kind` (task, engine, segmenter, estimator or method).

    Raises:
        ConfigError: the name is unknown; the message lists the known ones.
    """
    names = REGISTRIES[kind]
    if name not in names:
        raise unknown(kind, name, names)
    module, _, attribute = names[name].partition(":")
    return getattr(import_module(module), attribute)
