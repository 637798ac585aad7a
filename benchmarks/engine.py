"""Sampled tokens a second of HFEngine beside `model.generate`, on the same requests in the same process.

    python benchmarks/engine.py [--model PATH] [--device cpu] [--threads 2] [--repeats 3]

Three workloads: 128 rows from full questions, 8 samples of each or one of each, and `search`: 8 rollouts from every
step prefix of trajectories. `generate` gets every advantage that a caller can give it: requests sorted by length,
batches of 128 rows, both attentions tried, and malloc told to keep freed memory (its caches are allocated anew at each
token, and page faults otherwise take much of its time). Runs are interleaved; medians are stated, and of the ratios
within a repeat the range too: the machine may be busy. `--cpu-time` counts processor time instead of the clock's, which
on one thread does not see what else runs.

The limit is what the arithmetic allows: the weights' products at the measured speed of one matrix product of such a
shape, and each row's keys and values read once a token at the measured speed of reading. Sharing a prefix reads less.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, Qwen3Config

from gpo.contracts import Engine
from gpo.engines.hf import HFEngine
from gpo.engines.loading import load_model, load_tokenizer
from gpo.rollout.prompting import render
from gpo.rollout.segmenters import Newline
from gpo.tasks.generated import Generated
from gpo.types import Request

REASONER = Path(__file__).parents[1] / "src/gpo/reasoner/weights"
BATCH = 128
ROLLOUTS = 8
STEP = 20  # tokens of a reasoning step
Clock = Callable[[], float]
Runner = Callable[[Sequence[Request]], tuple[int, float]]


class NumberTokenizer:
    """Enough of a tokenizer for a model without text."""

    eos_token_id = 0

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, token_ids))


def random_model(vocabulary: int = 1024) -> Any:
    """A Qwen3 of 1.4 M parameters, near uniform, in which 8 of 1024 tokens end a response: 128 tokens on average."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=384, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).float().eval()
    model.generation_config = GenerationConfig(eos_token_id=list(range(8)), pad_token_id=0)
    return model


def prompts(engine: HFEngine, count: int) -> list[tuple[int, ...]]:
    """Generated questions of all sub-tasks in turn; random tokens, 30 to 350 of them, for the model without text."""
    rng = random.Random(0)
    if isinstance(engine.tokenizer, NumberTokenizer):
        vocabulary = range(8, engine.model.config.vocab_size)
        return [tuple(rng.choices(vocabulary, k=rng.randint(30, 350))) for _ in range(count)]
    task = Generated()
    problems = rng.sample(task.problems("dev"), count)
    return [render(task.prompt(problem), engine.tokenizer) for problem in problems]


def question_requests(engine: HFEngine, count: int, n: int, max_tokens: int) -> list[Request]:
    return [Request(prompt, n, max_tokens, seed) for seed, prompt in enumerate(prompts(engine, count))]


def search_requests(engine: HFEngine, questions: Sequence[Request]) -> list[Request]:
    """ROLLOUTS from every step boundary of one trajectory of each question, within what is left of its budget."""
    firsts = [Request(question.token_ids, 1, question.max_tokens, question.seed) for question in questions]
    requests = []
    for question, [completion] in zip(questions, engine.generate(firsts), strict=True):
        response = completion.token_ids
        if isinstance(engine.tokenizer, NumberTokenizer):
            ends = tuple(range(STEP, len(response), STEP))
        else:
            ends = Newline()(response, engine.tokenizer)[:-1]
        for end in (0, *ends):
            prefix = question.token_ids + response[:end]
            requests.append(Request(prefix, ROLLOUTS, question.max_tokens - end, len(requests)))
    return requests


def run_engine(engine: Engine, clock: Clock) -> Runner:
    def run(requests: Sequence[Request]) -> tuple[int, float]:
        began = clock()
        groups = engine.generate(requests)
        seconds = clock() - began
        return sum(len(completion.token_ids) for group in groups for completion in group), seconds

    return run


def run_generate(model: Any, attention: str, clock: Clock) -> Runner:
    """The library: left-padded batches of BATCH rows of similar length."""
    ends = torch.tensor(model.generation_config.eos_token_id).view(-1)

    def run(requests: Sequence[Request]) -> tuple[int, float]:
        model.set_attn_implementation(attention)
        rows = sorted((request for request in requests for _ in range(request.n)), key=lambda r: len(r.token_ids))
        tokens = 0
        began = clock()
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            longest = max(len(row.token_ids) for row in batch)
            ids = torch.zeros(len(batch), longest, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for index, row in enumerate(batch):
                ids[index, longest - len(row.token_ids) :] = torch.tensor(row.token_ids)
                mask[index, longest - len(row.token_ids) :] = 1
            output = model.generate(
                ids.to(model.device), attention_mask=mask.to(model.device), do_sample=True, top_k=0, top_p=1.0,
                max_new_tokens=max(row.max_tokens for row in batch), pad_token_id=0,
            )[:, longest:].cpu()  # fmt: skip
            ended = torch.isin(output, ends).cumsum(-1)
            lengths = (ended == 0).sum(-1) + (ended[:, -1] > 0)
            limits = torch.tensor([row.max_tokens for row in batch])
            tokens += int(lengths.minimum(limits).sum())
        return tokens, clock() - began

    return run


def limit(model: Any, requests: Sequence[Request], mean_response: float) -> float:
    """Tokens a second if only weight arithmetic and one read of every row's keys and values took time."""
    config, device = model.config, model.device
    x = torch.randn(256, config.hidden_size, device=device, dtype=model.dtype)
    w = torch.randn(config.hidden_size, 1024, device=device, dtype=model.dtype)
    block = torch.randn(1 << 26, device=device)
    flops = 2 * x.numel() * w.shape[1] / best(lambda: x @ w, device)
    bandwidth = block.numel() * block.element_size() / best(block.sum, device)
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    position = 2 * config.num_hidden_layers * config.num_key_value_heads * head * model.dtype.itemsize
    context = statistics.fmean(len(request.token_ids) for request in requests) + mean_response / 2
    weights = sum(parameter.numel() for parameter in model.parameters())
    print(f"  limit: {flops / 1e9:.0f} GFLOP/s on {2 * weights / 1e6:.1f} MFLOP a token, "
          f"{bandwidth / 1e9:.0f} GB/s on {position * context / 1e6:.2f} MB a token")  # fmt: skip
    return 1 / (2 * weights / flops + position * context / bandwidth)


def best(work: Callable[[], Any], device: torch.device) -> float:
    seconds = []
    for _ in range(20):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def compare(name: str, engine: HFEngine, requests: Sequence[Request], repeats: int, clock: Clock) -> None:
    runners = {
        "HFEngine": run_engine(engine, clock),
        "generate sdpa": run_generate(engine.model, "sdpa", clock),
        "generate eager": run_generate(engine.model, "eager", clock),
    }
    rates: dict[str, list[float]] = {label: [] for label in runners}
    sampled: dict[str, int] = {}
    for _ in range(repeats):
        for label, run in runners.items():
            sampled[label], seconds = run(requests)
            rates[label].append(sampled[label] / seconds)
    rows = sum(request.n for request in requests)
    print(f"\n{name}: {len(requests)} starts, {rows} rows, {sampled['HFEngine']} tokens sampled")
    possible = limit(engine.model, requests, sampled["HFEngine"] / rows)
    print(f"  {'':16}{'tokens/s':>10}{'of limit':>10}{'ratio':>8}  (range)")
    for label, values in rates.items():
        rate = statistics.median(values)
        ratios = [mine / theirs for mine, theirs in zip(rates["HFEngine"], values, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(
            f"  {label:16}{rate:10.0f}{rate / possible:10.0%}{statistics.median(ratios):8.2f}  ({spread})", flush=True
        )


def keep_freed_memory() -> None:
    """Tell glibc's malloc not to hand freed blocks back to the system; elsewhere do nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="directory or hub id; default: the embedded reasoner, or a random Qwen3")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trajectories", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=700)
    parser.add_argument("--only", choices=("shared", "single", "search"))
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    if options.cpu_time and (options.threads > 1 or options.device != "cpu"):
        parser.error("--cpu-time needs --device cpu and --threads 1: other threads' time would be added")
    torch.set_num_threads(options.threads)
    keep_freed_memory()

    name = options.model or (str(REASONER) if REASONER.exists() else None)
    if name:
        model = load_model(name, None, device=options.device, dtype="auto", attention=None)
        engine = HFEngine(model=model, tokenizer=load_tokenizer(name))
    else:
        engine = HFEngine(model=random_model().to(options.device), tokenizer=NumberTokenizer())
    print(f"{name or 'random Qwen3'} on {options.device}, {options.threads} threads")
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.only in (None, "shared"):
        shared = question_requests(engine, BATCH // ROLLOUTS, ROLLOUTS, options.max_tokens)
        compare(f"question ({ROLLOUTS} samples each)", engine, shared, options.repeats, clock)
    if options.only in (None, "single"):
        single = question_requests(engine, BATCH, 1, options.max_tokens)
        compare("question (1 sample each)", engine, single, options.repeats, clock)
    if options.only in (None, "search"):
        starts = search_requests(engine, question_requests(engine, options.trajectories, 1, options.max_tokens))
        compare(f"search ({ROLLOUTS} from every prefix)", engine, starts, options.repeats, clock)


if __name__ == "__main__":
    main()
