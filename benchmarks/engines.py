"""Sampled tokens a second of the search workload: `hf` in this process beside a server, as a ratio.

    python -m vllm.entrypoints.openai.api_server --model src/gpo/reasoner/weights --dtype float32 \\
        --enable-prefix-caching --no-enable-chunked-prefill &
    python benchmarks/engines.py --base-url http://127.0.0.1:8000 [--model PATH] [--repeats 3] [--samples-per-request 1]

The workload is that of `benchmarks/engine.py --only search`: 8 rollouts from every step prefix of a few trajectories.
Engines take turns on the same requests; medians are stated, and the range of the ratios within a turn. On one machine
both have the same cores, one at a time, and the server's HTTP and tokens of JSON count.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from engine import REASONER, keep_freed_memory, question_requests, run_engine, search_requests
from gpo.engines.hf import HFEngine
from gpo.engines.openai import OpenAIEngine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REASONER))
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trajectories", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=700)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--samples-per-request", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()

    here = HFEngine(options.model)
    there = OpenAIEngine(
        options.model,
        options.base_url,
        in_flight=options.in_flight,
        samples_per_request=options.samples_per_request,
        patience=30,
    )
    starts = search_requests(here, question_requests(here, options.trajectories, 1, options.max_tokens))
    runners = {"hf": run_engine(here, time.perf_counter), "openai": run_engine(there, time.perf_counter)}
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(options.repeats):
        for name, run in runners.items():
            tokens, seconds = run(starts)
            rates[name].append(tokens / seconds)
    rows = sum(request.n for request in starts)
    print(f"{options.model}: {len(starts)} starts, {rows} rollouts, {options.threads} threads, {there.base_url}")
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["hf"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {name:8}{statistics.median(values):8.0f} tokens/s{statistics.median(ratios):8.2f}  ({spread})")
    there.close()


if __name__ == "__main__":
    main()
