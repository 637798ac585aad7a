"""Peak memory of the log-probabilities and their gradient in online training: logits in chunks, and all at once.

    python benchmarks/memory.py --vocabulary 150000 --batch 4 --tokens 1000

The model is small but for its vocabulary, so that what is seen are the logits. Each way runs in a process of its own;
printed is the largest resident memory in GB above that of the model, and the largest difference of the
log-probabilities.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gpo.methods.rows import TrainingRow
from gpo.methods.scoring import scoring
from gpo.methods.tree import pack
from gpo.types import Start

PROMPT = tuple(range(24))
WAYS = ("chunks", "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1_000)
    parser.add_argument("--way", choices=WAYS, help="one way only, in this process")
    parser.add_argument("--out", type=Path, help="where that way writes its log-probabilities")
    options = parser.parse_args()
    if options.way:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / way for way in WAYS]
        for way, file in zip(WAYS, files, strict=True):
            subprocess.run([sys.executable, *sys.argv, "--way", way, "--out", str(file)], check=True)
        chunks, whole = (torch.load(file) for file in files)
    print(f"largest difference of a log-probability: {(chunks - whole).abs().max().item():.1e}")


def measure(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=len(PROMPT) + options.tokens,
    )
    model = LlamaForCausalLM(config)
    ids = torch.randint(0, options.vocabulary, (options.batch, options.tokens)).tolist()
    rows = [TrainingRow(PROMPT, tuple(each), 1.0, 0, Start("p", PROMPT), None) for each in ids]
    before = peak()
    found = {"chunks": in_chunks, "whole": at_once}[options.way](model, rows)
    print(f"{options.way}: {peak() - before:.2f} GB")
    torch.save(found.detach(), options.out)


def in_chunks(model: Any, rows: list[TrainingRow]) -> Tensor:
    """As the methods do it: `gpo.methods.scoring`."""
    with scoring(model) as scorer:
        sequences = [(row.context, row.tokens) for row in rows]
        [batch] = pack(sequences, max_tokens=1 << 20, share=scorer.shares)
        out = scorer(batch)
        out.logps.mean().backward()
    found = dict(zip(batch.sequences, batch.split(out.logps.detach()), strict=True))
    return torch.cat([found[i] for i in range(len(rows))])


def at_once(model: Any, rows: list[TrainingRow]) -> Tensor:
    """Float32 logits of every position, as a formula would have them."""
    ids = torch.tensor([row.ids for row in rows])
    every = model(input_ids=ids, use_cache=False, output_hidden_states=True).logits[:, :-1].float().log_softmax(-1)
    with torch.no_grad():
        (every.exp() * every).sum(dim=-1)  # the entropy
    found = every.gather(-1, ids[:, 1:, None])[:, len(PROMPT) - 1 :, 0].flatten()
    found.mean().backward()
    return found


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


if __name__ == "__main__":
    main()
