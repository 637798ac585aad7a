"""Sampled tokens a second of each decoder on a Llama, a Qwen2 and a Gemma of one size, and on a model of your own.

    python benchmarks/decoders.py [--model PATH] [--rows 32] [--tokens 64] [--repeats 3] [--threads 1]

Without `--model` the weights are random: 30 M parameters, a vocabulary of 32 k, prompts of 100 tokens, every row a
prompt of its own. `LlamaDecoder` is what `kernel="auto"` takes where it can, `LibraryDecoder` what `kernel="library"`
takes, and `RecomputingDecoder` what a model gets whose state cannot be forked. Runs are interleaved; printed are
medians, and the range of each ratio to the library's: the machine may be busy.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GenerationConfig, LlamaConfig, Qwen2Config

from engine import NumberTokenizer
from gpo.engines.hf import HFEngine
from gpo.engines.library import LibraryDecoder, RecomputingDecoder, forkable_layers
from gpo.engines.llama import LlamaDecoder, is_supported
from gpo.engines.loading import load_model
from gpo.types import Request

PROMPT = 100
SHAPE = {
    "vocab_size": 32_000, "hidden_size": 448, "intermediate_size": 1280, "num_hidden_layers": 7,
    "num_attention_heads": 7, "num_key_value_heads": 7, "max_position_embeddings": 1024, "tie_word_embeddings": True,
    "eos_token_id": 0, "bos_token_id": None, "pad_token_id": None,
}  # fmt: skip
CONFIGS = {"Llama": LlamaConfig, "Qwen2": Qwen2Config, "Gemma 2": Gemma2Config}


class Chosen(HFEngine):
    """An engine that decodes as it is told."""

    way: Any = None

    def decoder(self) -> Any:
        return self.way(self._network())


def ways(model: Any) -> dict[str, Any]:
    layers = forkable_layers(model)
    known: dict[str, Any] = {"LlamaDecoder": LlamaDecoder} if is_supported(model) else {}
    known |= {"LibraryDecoder": lambda network: LibraryDecoder(network, layers)} if layers else {}
    return known | {"RecomputingDecoder": RecomputingDecoder}


def compare(name: str, model: Any, options: argparse.Namespace) -> None:
    draw = random.Random(0)
    vocabulary = range(8, model.config.vocab_size)
    requests = [Request(tuple(draw.choices(vocabulary, k=PROMPT)), 1, options.tokens, i) for i in range(options.rows)]
    engine = Chosen(model, NumberTokenizer())
    rates: dict[str, list[float]] = {way: [] for way in ways(model)}
    for _ in range(options.repeats):
        for way, decoder in ways(model).items():
            engine.way = decoder
            began = time.perf_counter()
            tokens = sum(len(each.token_ids) for group in engine.generate(requests) for each in group)
            rates[way].append(tokens / (time.perf_counter() - began))
    size = model.num_parameters() / 1e6
    for way, found in rates.items():
        ratios = [mine / theirs for mine, theirs in zip(found, rates["LibraryDecoder"], strict=True)]
        print(f"{name:<10}{size:6.0f} M  {way:<20}{statistics.median(found):8.0f} tokens/s"
              f"{statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or hub id in place of random ones")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.model:
        model = load_model(options.model, None, device="cpu", dtype="auto", attention=None)
        compare(type(model).__name__.removesuffix("ForCausalLM"), model, options)
        return
    for name, kind in CONFIGS.items():
        torch.manual_seed(0)
        extra = {"head_dim": 64} if name == "Gemma 2" else {}
        model = AutoModelForCausalLM.from_config(kind(**SHAPE, **extra)).float().eval()
        model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
        compare(name, model, options)


if __name__ == "__main__":
    main()
