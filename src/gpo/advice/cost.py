"""What an arm of a run takes: floating-point operations, memory, hours of a GPU, from model and tokens.

Assumptions, each a constant here or a term below: 2 operations for each parameter and token forward, 2 backward for
what flows on and 2 for the gradients of weights that are trained (frozen ones under adapters have none), 2 again where
activations are computed twice; attention over the context is left out, as is what packing saves (tokens that
sequences share are computed once, so that training takes less). Memory of training is float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

from gpo.errors import unknown
from gpo.types import ModelRef

FORWARD = BACKWARD = GRADIENTS = 2.0  # operations for each parameter and token
TRAINING_UTILISATION = 0.4  # of a GPU's peak
SAMPLING_UTILISATION = 0.4  # of the peak, where arithmetic is what takes the time
BANDWIDTH_UTILISATION = 0.6  # of a GPU's bandwidth, where reading weights and cache is
MEMORY_SHARE = 0.9  # of a GPU's memory that sampling may take
LARGEST_BATCH = 256  # sequences sampled at once
# Of the engine `hf`, on one H200 with half a billion weights and a vocabulary of 150 thousand: seconds that a step
# takes whatever it computes, and each of its sequences on top (drawing, branching). docs/advise.md says from what.
HF_BATCH, HF_STEP, HF_SEQUENCE = 1024, 8.6e-3, 12.2e-6
# Bytes of activations that one layer keeps for a token, as multiples of its widths in float32: inputs and outputs of
# its projections, norms, and the products of the feed-forward part.
OF_HIDDEN, OF_INTERMEDIATE = 12, 4
LOGITS = 3 * 4 * (1 << 24)  # bytes: logits of a chunk, their softmax and its gradient (gpo.methods.scoring)


@dataclass(frozen=True)
class ModelShape:
    """What of a model its cost depends on."""

    parameters: int  # all; an embedding that is the head too counts once
    layers: int
    hidden: int
    intermediate: int
    kv_heads: int
    head_dim: int
    adapters: int = 0  # parameters of adapters of rank 1 on all linear layers but the head
    bytes: int = 2  # of a number in sampling

    def kv_bytes(self, tokens: float) -> float:
        """Memory of the keys and values of so many tokens."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.bytes * tokens

    def trained(self, lora: int | None) -> int:
        """Parameters that get gradients."""
        return self.parameters if lora is None else lora * self.adapters


@dataclass(frozen=True)
class Work:
    """Tokens of one arm over all rounds."""

    sampled: dict[str, float]  # by stage
    prompts: float  # of questions and prefixes that sampling reads, each start's once
    trained: float  # that go through the model in training, context included, in all epochs
    scored: float = 0.0  # that go through a model without gradient: the reference, the policy before an update
    context: float = 0.0  # mean tokens of a whole sequence
    details: dict[str, float] = field(default_factory=dict)  # what it was foretold from

    @property
    def tokens(self) -> float:
        """Sampled tokens."""
        return sum(self.sampled.values())


@dataclass(frozen=True)
class Operations:
    """Floating-point operations by what they are for."""

    sampling: float
    prompts: float
    training: float
    scoring: float

    @property
    def total(self) -> float:
        return self.sampling + self.prompts + self.training + self.scoring


def operations(shape: ModelShape, work: Work, *, lora: int | None = None, twice: bool = False) -> Operations:
    """What the tokens of an arm take.

    Without adapters, and with activations kept, sampling and training are 2 N a sampled and 6 N a trained token: what
    the tables of `gpo compare` count.

    Args:
        lora: rank of adapters; None trains all weights.
        twice: activations are computed twice (gradient checkpointing).
    """
    size = float(shape.parameters)
    backward = BACKWARD * size + GRADIENTS * shape.trained(lora)
    of_token = (2 if twice else 1) * FORWARD * size + backward
    return Operations(
        sampling=FORWARD * size * work.tokens,
        prompts=FORWARD * size * work.prompts,
        training=of_token * work.trained,
        scoring=FORWARD * size * work.scored,
    )


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes at the peak of a step, at least: libraries, an allocator's slack and scores of attention come on top."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def training_memory(
    shape: ModelShape, tokens: float, *, lora: int | None = None, twice: bool = False, models: int = 1
) -> TrainingMemory:
    """Float32 weights, gradients, both moments of Adam, and activations of so many tokens in memory at once.

    Args:
        tokens: distinct tokens of a batch.
        twice: activations are computed twice: one number a layer and token is kept, and one layer at a time in full.
        models: weights in memory; 2 with a reference beside the policy.
    """
    trained = shape.trained(lora)
    layer = 4.0 * (OF_HIDDEN * shape.hidden + OF_INTERMEDIATE * shape.intermediate)
    kept = 4.0 * shape.hidden * shape.layers + layer if twice else layer * shape.layers
    adapters = 0 if lora is None else trained
    return TrainingMemory(
        weights=4.0 * (models * shape.parameters + adapters),
        gradients=4.0 * trained,
        optimizer=8.0 * trained,
        activations=kept * tokens,
        logits=LOGITS,
    )


@dataclass(frozen=True)
class Gpu:
    """Of a vendor's data sheet; operations without sparsity."""

    name: str
    bf16: float  # operations a second
    float32: float  # the same, with torch's default precision
    bandwidth: float  # bytes a second
    memory: float  # bytes


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100", 312e12, 19.5e12, 2.039e12, 80e9),
        Gpu("h100", 989e12, 66.9e12, 3.35e12, 80e9),
        Gpu("h200", 989e12, 66.9e12, 4.8e12, 141e9),
    )
}


def gpu_named(name: str) -> Gpu:
    """Raises: ConfigError if none is called so."""
    if name.lower() not in GPUS:
        raise unknown("GPU", name, list(GPUS))
    return GPUS[name.lower()]


@dataclass(frozen=True)
class Hours:
    """Of one GPU, at the utilisations above."""

    sampling: float
    training: float  # what is scored without gradient included
    batch: int  # sequences sampled at once
    cache: float  # bytes of keys and values that they take

    @property
    def total(self) -> float:
        return self.sampling + self.training


def gpu_hours(
    shape: ModelShape, work: Work, done: Operations, gpu: Gpu, *, bf16: bool = False, hf: bool = False
) -> Hours:
    """How long one GPU takes; infinite where the weights do not fit it.

    A token of a batch takes the longer of its arithmetic and of its part of reading the weights and the caches.

    Args:
        bf16: training multiplies in bfloat16; else in float32.
        hf: the engine `hf` samples, and not one that wastes nothing between its steps.
    """
    weights = float(shape.parameters * shape.bytes)
    room = MEMORY_SHARE * gpu.memory - weights
    each = shape.kv_bytes(work.context)
    most = HF_BATCH if hf else LARGEST_BATCH
    batch = min(most, int(room / each)) if each else most
    if batch < 1:
        return Hours(inf, inf, 0, 0.0)
    arithmetic = batch * FORWARD * shape.parameters / (gpu.bf16 * SAMPLING_UTILISATION)
    reading = (weights + batch * each) / (gpu.bandwidth * BANDWIDTH_UTILISATION)
    step = max(arithmetic, reading) + (HF_STEP + HF_SEQUENCE * batch if hf else 0.0)
    seconds = step / batch * work.tokens + done.prompts / (gpu.bf16 * SAMPLING_UTILISATION)
    speed = (gpu.bf16 if bf16 else gpu.float32) * TRAINING_UTILISATION
    return Hours(seconds / 3600, (done.training + done.scoring) / speed / 3600, batch, batch * each)


def shape_of(model: ModelRef) -> ModelShape | None:
    """Of a causal language model of transformers, from its configuration alone; None if it is no such model."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    from gpo.storage.hub import hub_options

    found = model.source
    try:
        if isinstance(found, str):
            where = _base_of(found)
            revision = {} if model.revision is None else {"revision": model.revision}
            config = AutoConfig.from_pretrained(where, trust_remote_code=False, **revision, **hub_options(where))
            with torch.device("meta"):
                found = AutoModelForCausalLM.from_config(config)
        config = found.config.get_text_config()
        head = found.get_output_embeddings()
        linear = [each for each in found.modules() if isinstance(each, nn.Linear) and each is not head]
        stored = config.dtype or torch.float32
        dtype = getattr(torch, stored) if isinstance(stored, str) else stored
        heads = config.num_attention_heads
        return ModelShape(
            parameters=sum(each.numel() for each in found.parameters()),
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            adapters=sum(each.in_features + each.out_features for each in linear),
            bytes=dtype.itemsize,
        )
    except (AttributeError, OSError, ValueError):
        return None


def _base_of(source: str) -> str:
    """The model that a directory of adapters belongs to; else what was given."""
    from pathlib import Path

    from gpo.storage.files import read_json

    adapters = Path(source) / "adapter_config.json"
    return str(read_json(adapters)["base_model_name_or_path"]) if adapters.is_file() else source
