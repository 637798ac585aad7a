"""Train the embedded reasoner from scratch: `python -m gpo.reasoner.pretrain --out DIR`.

A Qwen3 decoder of about one million parameters, on problems generated as it goes. How this departs from a plain
language-model recipe, each because it made looking things up learnable within a few minutes on two cores:
- the forward pass is written out and compiled, bf16 with plain matrix products (2 times the library's speed);
- Muon for the matrices, AdamW for embeddings and norms; constant learning rate, then a linear decay to zero;
- the question carries loss too, at `PROMPT_WEIGHT`, and the letters of options `LETTER_WEIGHT` times that of a token;
- drills for looking up a letter (`lookups.py`) from the start;
- a curriculum: families start one after another and grow to their real sizes;
- batches are of one length, and a step mixes batches of several lengths;
- in the decay, solutions make slips (`SLIPS`), so that the reasoner has habits worth unlearning.

Interrupted runs go on from their last checkpoint with the same data order.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import count
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from gpo.reasoner import foreign, long, lookups
from gpo.reasoner.decoder import CONTEXT, Decoder, Shape, library_model
from gpo.reasoner.example import NO_SLIPS, Example, Slips
from gpo.reasoner.families import FAMILIES, generate
from gpo.reasoner.tokenizer import build

PROMPT_WEIGHT = 0.25
LETTER_WEIGHT = 8.0
LETTERS = [f"Ġ({letter})" for letter in "ABCDEFG"]
DRILL = "lookups"
# family: (share of the examples, share of the training after which it starts)
MIXTURE = {
    DRILL: (2.0, 0.0),
    "boolean_expressions": (0.8, 0.0),
    "web_of_lies": (0.8, 0.0),
    "dyck_languages": (2.5, 0.0),
    "tracking_shuffled_objects_three_objects": (2.5, 0.0),
    "navigate": (1.5, 0.04),
    "multistep_arithmetic_two": (2.5, 0.04),
    "temporal_sequences": (1.5, 0.06),
    "tracking_shuffled_objects_five_objects": (1.5, 0.08),
    "tracking_shuffled_objects_seven_objects": (1.5, 0.16),
}
SLIPS = Slips(
    {
        "boolean.double_not": 0.6,
        "boolean.not": 0.08,
        "boolean.and": 0.35,
        "boolean.or": 0.35,
        "lies.liar_called_liar": 0.5,
        "lies.says": 0.05,
        "navigate.turn_around": 0.5,
        "navigate.turn": 0.1,
        "navigate.left_right": 0.35,
        "navigate.backwards": 0.35,
        "temporal.gap": 0.6,
        "temporal.recall": 0.25,
        "tracking.repeated": 0.45,
        "tracking.swap": 0.2,
        "tracking.bystander": 0.2,
        "dyck.pop_deep": 0.06,
        "dyck.pop": 0.04,
    }
)
SLIPS_FROM = 0.75  # share of the training


Batch = tuple[Tensor, Tensor]


def family(rng: Random, progress: float) -> Example:
    """A problem of one of the families that have started, at its size at this share of the training."""
    slips = SLIPS if progress >= SLIPS_FROM else NO_SLIPS
    names = [name for name, (_, start) in MIXTURE.items() if progress >= start]
    name = rng.choices(names, [MIXTURE[name][0] for name in names])[0]
    top = min(1.0, 0.15 + 4 * (progress - MIXTURE[name][1]))
    level = None if rng.random() < min(0.8, 1.6 * progress) else top * (1 - rng.random())
    return lookups.make(rng, level, slips) if name == DRILL else generate(name, rng, level, slips)


def pool(tokenizer: Any, examples: Iterator[Example], rng: Random, tokens: int, micro: int) -> list[Batch]:
    """About `tokens` tokens of examples as shuffled batches of near-equal length, `micro` tokens each.

    The rare example that is longer than `CONTEXT` (a deep bracket stack) is left out.
    """
    chosen: list[Example] = []
    total = 0
    while total < tokens:
        chosen.append(next(examples))
        total += sum(len(text) // 4 for text in (chosen[-1].question, chosen[-1].given, chosen[-1].solution))

    def ids_of(texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
        return found

    prompts = ids_of([f"<|user|>{example.question}<|assistant|>" for example in chosen])
    beginnings = ids_of([example.given for example in chosen])
    answers = ids_of([f"{example.solution}<|end|>" for example in chosen])
    given_weights = [example.given_weight for example in chosen]
    rows = [
        (len(prompt) + len(given) + len(answer), prompt, given, answer, weight)
        for prompt, given, answer, weight in zip(prompts, beginnings, answers, given_weights, strict=True)
    ]
    rows = sorted((row for row in rows if row[0] <= CONTEXT), key=itemgetter(0))
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(LETTERS))
    batches: list[Batch] = []
    while rows:
        length = -(-rows[-1][0] // 16) * 16
        size = max(1, micro // length)
        batch, rows = rows[-size:], rows[:-size]
        ids = torch.zeros(len(batch), length, dtype=torch.long)
        weights = torch.zeros(len(batch), length)
        for i, (end, prompt, given, answer, given_weight) in enumerate(batch):
            begin = len(prompt) + len(given)
            ids[i, :end] = torch.tensor(prompt + given + answer)
            weights[i, : len(prompt)] = PROMPT_WEIGHT
            weights[i, len(prompt) : begin] = given_weight
            answered = torch.isin(ids[i, begin:end], letters)
            weights[i, begin:end] = 1.0 + (LETTER_WEIGHT - 1.0) * answered
        batches.append((ids, weights))
    rng.shuffle(batches)
    return batches


@dataclass
class Settings:
    out: Path
    tokens: int = 60_000_000
    seed: int = 0
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    decay: float = 0.5  # share of the training in which the learning rate goes to zero
    step_tokens: int = 8192
    micro_tokens: int = 4096
    checkpoint_seconds: float = 180.0
    compile: bool = True
    init: str = ""  # directory of a reasoner to go on from, past the curriculum, instead of from scratch
    foreign: bool = False  # solutions that somebody else began (foreign.py), for a reasoner that judges traces
    long: bool = False  # questions of all sizes (long.py), from nearly always solved to nearly never


class Pretraining:
    """The training state; `run()` goes from wherever the last checkpoint is to the end."""

    def __init__(self, settings: Settings, shape: Shape | None = None) -> None:
        self.settings = settings
        self.shape = shape or Shape()
        torch.set_flush_denormal(True)  # sharp attention is full of denormals, which are ten times slower
        torch.manual_seed(settings.seed)
        self.tokenizer = build()
        self.model = library_model(self.shape)
        if settings.init:
            take_weights(self.model, self.tokenizer, settings.init)
        self.decoder = Decoder(self.model, self.shape)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim == 1 or "embed" in name]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=settings.muon_lr, momentum=0.95, weight_decay=0.01),
            torch.optim.AdamW(others, lr=settings.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.seen = self.step = self.pools = 0

    @property
    def checkpoint(self) -> Path:
        return self.settings.out / "pretraining.pt"

    def resume(self) -> None:
        if self.checkpoint.exists():
            state = torch.load(self.checkpoint, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.seen, self.step, self.pools = state["seen"], state["step"], state["pools"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "seen": self.seen,
            "step": self.step,
            "pools": self.pools,
        }
        torch.save(state, self.checkpoint.with_suffix(".new"))
        os.replace(self.checkpoint.with_suffix(".new"), self.checkpoint)

    def rate(self) -> float:
        """The learning-rate factor: 200 steps of warm-up, constant, linear decay."""
        left = (1 - self.seen / self.settings.tokens) / self.settings.decay
        return max(0.0, min(1.0, (self.step + 1) / 200, left))

    def run(self) -> None:
        settings = self.settings
        settings.out.mkdir(parents=True, exist_ok=True)
        self.resume()
        loss_of = torch.compile(self.decoder, dynamic=True) if settings.compile else self.decoder
        log = open(settings.out / "pretraining.jsonl", "a")  # noqa: SIM115
        saved = clock = time.monotonic()
        before = self.seen
        total, count = 0.0, 0.0
        while self.seen < settings.tokens:
            progress = 1.0 if settings.init else self.seen / settings.tokens
            for step in steps(self.next_pool(progress), settings.step_tokens):
                scale = sum(float((weights[:, 1:] > 0).sum()) for _, weights in step)
                factor = self.rate()
                for optimizer, lr in zip(self.optimizers, (settings.muon_lr, settings.adam_lr), strict=True):
                    optimizer.param_groups[0]["lr"] = lr * factor
                for ids, weights in step:
                    loss = loss_of(ids, weights) / scale
                    loss.backward()
                    total += loss.item()
                    self.seen += int((weights > 0).sum())
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                self.step += 1
                count += 1
                if self.step % 50 == 0:
                    speed = round((self.seen - before) / (time.monotonic() - clock))
                    clock, before = time.monotonic(), self.seen
                    row = {"step": self.step, "tokens": self.seen, "loss": total / count, "lr": factor, "speed": speed}
                    print(json.dumps(row), file=log, flush=True)
                    total, count = 0.0, 0.0
                if self.seen >= settings.tokens:
                    break
            if time.monotonic() - saved > settings.checkpoint_seconds:
                self.save()
                self.export(settings.out / "model")
                saved = time.monotonic()
        self.save()
        self.export(settings.out / "model")

    def next_pool(self, progress: float) -> list[Batch]:
        self.pools += 1
        settings = self.settings
        rng = Random(f"{settings.seed}/{self.pools}")
        kind = foreign.make if settings.foreign else long.make if settings.long else partial(family, progress=progress)
        examples = (kind(rng) for _ in count())
        return pool(self.tokenizer, examples, rng, 40 * settings.step_tokens, settings.micro_tokens)

    def export(self, path: Path) -> None:
        """Write the model in bf16 with its tokenizer, as transformers loads them."""
        bf16 = library_model(self.shape)
        bf16.load_state_dict(self.model.state_dict())
        bf16.to(torch.bfloat16).save_pretrained(path)
        self.tokenizer.save_pretrained(path)


def take_weights(model: Any, tokenizer: Any, path: str) -> None:
    """Copy the weights of an earlier reasoner; its tokenizer may differ, embeddings go by the text of the token."""
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    state = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).state_dict()
    earlier = AutoTokenizer.from_pretrained(path).get_vocab()
    rows = {token: row for row, token in enumerate(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))}
    known = [token for token in rows if token in earlier]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        moved = model.state_dict()[name].clone()
        moved[[rows[token] for token in known]] = state[name][[earlier[token] for token in known]]
        state[name] = moved
    model.load_state_dict(state)


def steps(batches: list[Batch], tokens: int) -> Iterator[list[Batch]]:
    """Whole batches gathered until `tokens` are reached; the last few that do not fill a step are left out."""
    gathered: list[Batch] = []
    for batch in batches:
        gathered.append(batch)
        if sum(ids.numel() for ids, _ in gathered) >= 0.9 * tokens:
            yield gathered
            gathered = []


def main(arguments: Sequence[str] | None = None) -> int:
    """The command `gpo pretrain`."""
    parser = argparse.ArgumentParser(prog="gpo pretrain", description="Train the embedded reasoner from scratch.")
    for name, default in asdict(Settings(Path("reasoner"))).items():
        kind = type(default)
        if kind is bool:
            parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=default)
    settings = Settings(**vars(parser.parse_args(arguments)))
    settings.out = Path(settings.out)
    assert set(MIXTURE) == {DRILL, *FAMILIES}
    Pretraining(settings).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
