"""Peak memory and time of one step of DPO and one of GRPO, with adapters, on sequences of a given length.

    python benchmarks/training_memory.py MODEL [--tokens 2000] [--methods dpo,grpo] [--lora 16] [--keep] [--bf16]

DPO has one pair of two completions, GRPO two rollouts of one prompt; each sequence has `--tokens` random tokens, 150 of
them a prompt that both share. With `--keep` activations are kept instead of computed twice. Each method runs in a
process of its own; the peak is the largest resident memory, weights included. Times are worth something on an idle
machine only.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from gpo.methods.dpo import DPO
from gpo.methods.grpo import GRPO
from gpo.types import Completion, Group, Pair, Score, Start, Trajectory

PROMPT = 150


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--methods", default="dpo,grpo")
    parser.add_argument("--lora", type=int, default=16)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--alone", help="one method, in this process")
    options = parser.parse_args()
    if options.alone:
        measure(options)
        return
    for method in options.methods.split(","):
        subprocess.run([sys.executable, *sys.argv, "--alone", method], check=True)


def measure(options: argparse.Namespace) -> None:
    draw = random.Random(0)
    settings: dict[str, Any] = {
        "lora": options.lora, "gradient_checkpointing": not options.keep, "bf16": options.bf16,
    }  # fmt: skip
    method: Any = {"dpo": DPO, "grpo": GRPO}[options.alone](options.model, **settings)
    vocabulary = method.policy.model.get_input_embeddings().num_embeddings
    loaded = peak()
    prompt, first, second = (
        tuple(draw.choices(range(vocabulary), k=size)) for size in (PROMPT, *[options.tokens - PROMPT] * 2)
    )
    began = time.perf_counter()
    if options.alone == "dpo":
        metrics = method.update([Pair("p", prompt, (), first, second, "", "", "", "")])
    else:
        start = Start("p", prompt)
        rows = [
            Trajectory(str(i), start, Completion(ids, "", "length"), Score(float(i), "right" if i else "wrong"), ())
            for i, ids in enumerate((first, second))
        ]
        metrics = method.update([Group(start, tuple(rows))])
    seconds = time.perf_counter() - began
    kept = "activations kept" if options.keep else "computed twice"
    print(
        f"{options.alone}: vocabulary {vocabulary}, 2 sequences of {options.tokens} tokens, LoRA {options.lora}, {kept}"
    )
    print(f"  peak {peak():.1f} GB, {loaded:.1f} GB before the step; loss {metrics['loss']:.4f}")
    print(f"  {seconds:.0f} s on {torch.get_num_threads()} threads", flush=True)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
