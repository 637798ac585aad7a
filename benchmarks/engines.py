"""Sampled tokens a second of the search workload: `hf` in this process beside other engines, as a ratio.

    python -m vllm.entrypoints.openai.api_server --model src/gpo/reasoner/weights --dtype float32 \\
        --enable-prefix-caching --no-enable-chunked-prefill &
    python benchmarks/engines.py --base-url http://127.0.0.1:8000 [--model PATH] [--repeats 3] [--samples-per-request 1]
    python benchmarks/engines.py --actors 1,2 [--processor]

The workload is that of `benchmarks/engine.py --only search`: 8 rollouts from every step prefix of a few trajectories.
Engines take turns on the same requests; medians are stated, and the range of the ratios within a turn. On one machine
all have the same cores, one at a time, and the server's HTTP and tokens of JSON count. With `--processor` seconds are
those of processor time, of this process and all that it has started (Ray and its actors, no server): what a machine
that others use can tell of overhead, but not of speed with several actors.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import psutil
import torch

from engine import REASONER, keep_freed_memory, question_requests, run_engine, search_requests
from gpo.config.components import Spec
from gpo.contracts import Engine
from gpo.engines.hf import HFEngine
from gpo.engines.openai import OpenAIEngine
from gpo.engines.ray import RayEngine


def processor_seconds() -> float:
    """Of this process and of its children, as long as they run."""
    me = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in (me, *me.children(recursive=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(REASONER))
    parser.add_argument("--base-url", help="of a server")
    parser.add_argument("--actors", default="", help="of Ray: numbers with commas between them")
    parser.add_argument("--piece", type=int, default=RayEngine.piece)
    parser.add_argument("--processor", action="store_true", help="processor time in place of the clock")
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
    engines: dict[str, Engine] = {"hf": here}
    if options.base_url:
        several = {"in_flight": options.in_flight, "samples_per_request": options.samples_per_request}
        engines["openai"] = OpenAIEngine(options.model, options.base_url, patience=30, **several)
    for count in map(int, filter(None, options.actors.split(","))):
        # The same allocator in the actors, and no room that they would have to share.
        os.environ |= {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        engines[f"ray, {count}"] = RayEngine(
            options.model,
            actors=count,
            address="local",
            cpus=0.0,
            piece=options.piece,
            inner=Spec("engine", "hf", {"device": "cpu"}),
        )
    clock = processor_seconds if options.processor else time.perf_counter
    starts = search_requests(here, question_requests(here, options.trajectories, 1, options.max_tokens))
    runners = {name: run_engine(engine, clock) for name, engine in engines.items()}
    for run in runners.values():
        run(starts[:8])  # what is done once
    rates: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(options.repeats):
        for name, run in runners.items():
            tokens, seconds = run(starts)
            rates[name].append(tokens / seconds)
    rows = sum(request.n for request in starts)
    print(f"{options.model}: {len(starts)} starts, {rows} rollouts, {options.threads} threads")
    for name, values in rates.items():
        ratios = [value / base for value, base in zip(values, rates["hf"], strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {name:8}{statistics.median(values):8.0f} tokens/s{statistics.median(ratios):8.2f}  ({spread})")
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
