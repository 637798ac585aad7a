"""Training steps on prefix trees beside TRL's padded rows, on the same data in the same process.

    python benchmarks/training.py [--model PATH] [--device cpu] [--threads 2] [--repeats 3] [--questions 16] [--bf16]
        [--updates]

The embedded reasoner samples, and three workloads are made of it. `steps`: pairs of two different next steps behind
one prefix. `tails`: pairs of two different whole tails behind one prefix. `groups`: 8 rollouts behind each prompt and
prefix. A step of pairs is DPO's loss, forward, backward and AdamW; one of groups has an advantage for each rollout.

- `TRL`: padded rows through the forward that TRL's trainers put on a model, which computes logits for completions only,
  with either attention. Pairs are batched by length, as this project orders them.
- `tree`: as many sequences a step, neighbours in the order of their tokens.
- `tree, TRL's batches`: the same sequences in each step as TRL has. What is shared is a pair's or a group's own prefix.

With `--updates` whole updates of DPO are compared instead, on the pairs of the first two workloads: `DPO.update` beside
TRL's DPOTrainer as it comes (reference model beside the policy, rows shuffled), from the model in memory to the end of
one epoch, 16 pairs a step. Then `held` and the limit are not stated.

The limit is 6 FLOP for each parameter and token that is distinct in its step, as `tree` has them, at the measured speed
of one matrix product of such a shape. `computed` counts what goes through the model, padding included. `held` is the
most that a step keeps for its backward pass, the weights among it. Runs are interleaved; medians are stated, and of the
ratios within a repeat the range too: the machine may be busy. `--cpu-time` counts processor time instead of the
clock's, which on one thread does not see what else runs.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from engine import best, keep_freed_memory
from gpo.config.presets import model_path
from gpo.engines.hf import HFEngine
from gpo.methods.dpo import DPO
from gpo.methods.offline import pair_collator, pair_row
from gpo.methods.policy import quiet
from gpo.methods.scoring import scoring
from gpo.methods.trainers import order_by_length
from gpo.methods.tree import Scored, pack
from gpo.rollout.prompting import render
from gpo.rollout.segmenters import Newline
from gpo.tasks.generated import Generated
from gpo.types import Pair, Request

ROLLOUTS = 8
STEP_SEQUENCES = 32  # of a step of the optimizer: 16 pairs or 4 groups
BETA = 0.1
Clock = Callable[[], float]


@dataclass(frozen=True)
class Workload:
    """Sequences by the runs that belong together: chosen and rejected, or the rollouts of a group."""

    name: str
    runs: list[list[Scored]]

    def steps(self, *, by_length: bool) -> list[list[Scored]]:
        """The sequences of each step."""
        size = max(1, STEP_SEQUENCES // len(self.runs[0]))
        if by_length:
            lengths = [sum(len(c) + len(t) for c, t in run) for run in self.runs]
            runs = [self.runs[i] for i in order_by_length(lengths, size, 1, 0)]
        else:
            runs = sorted(self.runs, key=lambda run: tuple(run[0][0]))
        return [[s for run in runs[i : i + size] for s in run] for i in range(0, len(runs), size)]

    def loss(self, logps: Tensor) -> Tensor:
        """From the log-probabilities of the sequences of a step, in order."""
        if len(self.runs[0]) == 2:
            return -logsigmoid(BETA * (logps[0::2] - logps[1::2])).mean()
        advantages = torch.linspace(-1, 1, ROLLOUTS, device=logps.device).repeat(len(logps) // ROLLOUTS)
        return -(advantages * logps).mean()


def sample(model: str, questions: int, max_tokens: int) -> list[Workload]:
    """Rollouts from every step boundary of one trajectory of each question."""
    engine, task = HFEngine(model), Generated()
    problems = random.Random(0).sample(task.problems("dev"), questions)
    prompts = [render(task.prompt(problem), engine.tokenizer) for problem in problems]
    firsts = engine.generate([Request(prompt, 1, max_tokens, i) for i, prompt in enumerate(prompts)])
    requests = []
    for prompt, [completion] in zip(prompts, firsts, strict=True):
        for end in (0, *Newline()(completion.token_ids, engine.tokenizer)[:-1]):
            prefix = prompt + completion.token_ids[:end]
            requests.append(Request(prefix, ROLLOUTS, max_tokens - end, len(requests)))
    steps, tails, groups = [], [], []
    for request, completions in zip(requests, engine.generate(requests), strict=True):
        context, ids = request.token_ids, [completion.token_ids for completion in completions]
        groups.append([(context, tail) for tail in ids])
        first = [tail[: Newline()(tail, engine.tokenizer)[0]] for tail in ids]
        steps += [[(context, a), (context, b)] for a, b in combinations(dict.fromkeys(first), 2)][:16]
        tails += [[(context, a), (context, b)] for a, b in combinations(dict.fromkeys(ids), 2)][:16]
    return [Workload("steps", steps), Workload("tails", tails), Workload("groups", groups)]


class Runner:
    """One way of computing a workload's steps, with a model and an optimizer of its own."""

    def __init__(self, model: Any, workload: Workload, steps: list[list[Scored]], bf16: bool) -> None:
        self.model, self.workload, self.steps, self.bf16 = copy.deepcopy(model), workload, steps, bf16
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, foreach=True)
        self.computed = 0

    def losses(self, sequences: list[Scored]) -> Iterator[Tensor]:
        """The parts of the loss of one step, which are added up."""
        raise NotImplementedError

    def step(self, sequences: list[Scored]) -> None:
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            for loss in self.losses(sequences):
                loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def __call__(self, clock: Clock) -> float:
        """Seconds for all steps."""
        self.computed = 0
        synchronise(self.model.device)
        began = clock()
        for sequences in self.steps:
            self.step(sequences)
        synchronise(self.model.device)
        return clock() - began


class Trees(Runner):
    def losses(self, sequences: list[Scored]) -> Iterator[Tensor]:
        (batch,) = pack(sequences, sys.maxsize)
        self.computed += batch.token_ids.numel()
        sums = torch.stack([part.sum() for part in batch.split(self.scorer(batch).logps)])
        yield self.workload.loss(sums[torch.tensor(batch.sequences).argsort().to(sums.device)])

    def enter(self, stack: ExitStack) -> None:
        self.scorer = stack.enter_context(scoring(self.model))


class Rows(Runner):
    def __init__(self, attention: str, model: Any, workload: Workload, steps: list[list[Scored]], bf16: bool) -> None:
        super().__init__(model, workload, steps, bf16)
        self.model.set_attn_implementation(attention)
        add_fused_lm_head(self.model, outputs={"log_probs"})

    def losses(self, sequences: list[Scored]) -> Iterator[Tensor]:
        device = self.model.device
        rows = [torch.tensor([*context, *tokens]) for context, tokens in sequences]
        ids = pad_sequence(rows, batch_first=True).to(device)
        lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]
        contexts = torch.tensor([len(context) for context, _ in sequences], device=device)[:, None]
        places = torch.arange(ids.shape[1], device=device)
        labels = ids.masked_fill((places < contexts) | (places >= lengths), -100)
        self.computed += ids.numel()
        out = self.model(
            input_ids=ids, attention_mask=(places < lengths).long(), labels=labels, use_cache=False, fused_lm_head=True
        )
        yield self.workload.loss(out.log_probs.sum(dim=1))

    def enter(self, stack: ExitStack) -> None:
        pass


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def held() -> Iterator[Callable[[], float]]:
    """Counts MB that are kept for the backward pass; parameters are among them."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(kept.values()) / 1e6


def most_held(runner: Runner) -> float:
    """MB, of the largest steps of a workload; backward passes free what they have used."""
    most = 0.0
    for sequences in sorted(runner.steps, key=lambda step: sum(len(c) + len(t) for c, t in step))[-2:]:
        with torch.autocast(runner.model.device.type, torch.bfloat16, enabled=runner.bf16):
            parts = runner.losses(sequences)
            while True:
                with held() as count:
                    loss = next(parts, None)
                if loss is None:
                    break
                most = max(most, count())
    return most


def seconds_at_limit(model: Any, distinct: int, bf16: bool) -> float:
    """If only the weights' products took time."""
    width, dtype = model.config.hidden_size, torch.bfloat16 if bf16 else torch.float32
    x = torch.randn(1024, width, device=model.device, dtype=dtype)
    w = torch.randn(width, 1024, device=model.device, dtype=dtype)
    flops = 2 * x.numel() * w.shape[1] / best(lambda: x @ w, model.device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"  limit: {flops / 1e9:.0f} GFLOP/s on {6 * parameters / 1e6:.1f} MFLOP a distinct token")
    return 6 * parameters * distinct / flops


def compare(model: Any, workload: Workload, repeats: int, bf16: bool, clock: Clock) -> None:
    by_length, by_tree = workload.steps(by_length=True), workload.steps(by_length=False)
    runners: dict[str, Any] = {
        "tree": Trees(model, workload, by_tree, bf16),
        "tree, TRL's batches": Trees(model, workload, by_length, bf16),
        "TRL, sdpa": Rows("sdpa", model, workload, by_length, bf16),
        "TRL, eager": Rows("eager", model, workload, by_length, bf16),
    }
    sequences = sum(len(run) for run in workload.runs)
    tokens = sum(len(context) + len(tokens) for run in workload.runs for context, tokens in run)
    distinct = sum(batch.token_ids.numel() for step in by_tree for batch in pack(step, sys.maxsize))
    print(f"\n{workload.name}: {sequences} sequences, {tokens} tokens, {distinct} distinct, {len(by_tree)} steps")
    possible = seconds_at_limit(model, distinct, bf16)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    with ExitStack() as stack:
        for runner in runners.values():
            runner.enter(stack)
        memory = {name: most_held(runner) for name, runner in runners.items()}
        for _ in range(repeats):
            for name, runner in runners.items():
                seconds[name].append(runner(clock))
    print(f"  {'':22}{'sequences/s':>12}{'computed':>10}{'held MB':>9}{'of limit':>10}{'ratio':>8}  (range)")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        ratios = [theirs / ours for ours, theirs in zip(seconds["tree"], taken, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        counts = f"{sequences / median:12.1f}{runners[name].computed:10}{memory[name]:9.0f}{possible / median:10.0%}"
        print(f"  {name:22}{counts}{statistics.median(ratios):8.2f}  ({spread})", flush=True)


class OnTokens(DPOTrainer):  # type: ignore[misc]
    """TRL's trainer on rows that are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _send_telemetry(self) -> None:
        pass


def update_by_trl(model: Any, tokenizer: Any, pairs: list[Pair], bf16: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        config = DPOConfig(
            output_dir=directory, per_device_train_batch_size=STEP_SEQUENCES // 2, num_train_epochs=1, bf16=bf16,
            learning_rate=1e-5, beta=BETA, max_length=None, use_cpu=model.device.type == "cpu", save_strategy="no",
            activation_checkpointing=False, gradient_checkpointing=None, report_to="none", disable_tqdm=True,
        )  # fmt: skip
        trainer = OnTokens(
            model=model,
            ref_model=copy.deepcopy(model),
            args=config,
            processing_class=tokenizer,
            train_dataset=Dataset.from_list([pair_row(pair, "prompt") for pair in pairs]),
            data_collator=pair_collator(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def update_by_gpo(model: Any, tokenizer: Any, pairs: list[Pair], bf16: bool) -> None:
    settings = {"batch_size": STEP_SEQUENCES // 2, "learning_rate": 1e-5, "beta": BETA, "bf16": bf16}
    DPO(model, tokenizer, **settings).update(pairs)


def compare_updates(model: Any, tokenizer: Any, workload: Workload, repeats: int, bf16: bool, clock: Clock) -> None:
    pairs = [
        Pair(f"{i}", tuple(context), (), tuple(a), tuple(b), "", "", "", "")
        for i, ((context, a), (_, b)) in enumerate(workload.runs)
    ]
    seconds: dict[str, list[float]] = {"DPO.update": [], "TRL's DPOTrainer": []}
    for _ in range(repeats):
        for name, update in zip(seconds, (update_by_gpo, update_by_trl), strict=True):
            own = copy.deepcopy(model)
            synchronise(model.device)
            began = clock()
            with quiet():
                update(own, tokenizer, pairs, bf16)
            synchronise(model.device)
            seconds[name].append(clock() - began)
    ours, theirs = seconds.values()
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    print(f"\n{workload.name}: {len(pairs)} pairs")
    for name, taken in seconds.items():
        print(f"  {name:22}{len(pairs) / statistics.median(taken):8.1f} pairs/s")
    print(f"  ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="reasoner", help="directory, hub id or name; it samples the data too")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=700)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", choices=("steps", "tails", "groups"))
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--updates", action="store_true", help="whole updates of DPO beside TRL's")
    options = parser.parse_args()
    if options.cpu_time and (options.threads > 1 or options.device != "cpu"):
        parser.error("--cpu-time needs --device cpu and --threads 1: other threads' time would be added")
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    path = model_path(options.model)
    workloads = sample(path, options.questions, options.max_tokens)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to(options.device)
    print(f"{options.model} on {options.device}, {options.threads} threads, {'bf16' if options.bf16 else 'float32'}")
    for workload in workloads:
        if options.updates and workload.name != "groups" and options.only in (None, workload.name):
            tokenizer = AutoTokenizer.from_pretrained(path)
            compare_updates(model, tokenizer, workload, options.repeats, options.bf16, clock)
        elif not options.updates and options.only in (None, workload.name):
            compare(model, workload, options.repeats, options.bf16, clock)


if __name__ == "__main__":
    main()
