"""How fast the annotation pages answer when many people mark at once.

    python benchmarks/annotate.py [--annotators 50] [--items 20] [--think 2.0] [--seed 0] [--out FILE]

Starts `gpo annotate` on a small toy run, as a process of its own on loopback. Every annotator has an HTTP client, opens
a personal link and goes through all solutions: reads the page, thinks (exponentially distributed with a mean of
`--think` seconds; 0: not at all), sends the mark, follows to the next page. Shown are the times of each kind of
request, and whether the database holds every mark that was acknowledged. A mean of 2 seconds is some ten times faster
than people read. The clients share the machine with the server, so that their own work is part of the times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import httpx2 as httpx
import numpy as np

from gpo.annotate.marks import Marks
from gpo.config.components import Spec
from gpo.config.run import RunConfig
from gpo.experiment.run import Run

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # where the toy method is
FIELD = re.compile(r'name="(token|item)" value="([^"]*)"')
STEP = re.compile(r'name="step" value="(\d+)"')
START = 60  # seconds that the server may take to start

Times = dict[str, list[float]]  # seconds, by kind of request


def make_run(path: Path, items: int) -> None:
    """A run of toy processes with searched trajectories."""
    config = RunConfig(
        task=Spec("task", "gpo.toy:ChainTask"),
        engine=Spec("engine", "gpo.toy:ChainEngine", {"padding": 8}),
        method=Spec("method", "toy:ToyMethod"),  # nothing is trained
        problems=items,
        budget=30.0,
        locate_share=0.9,
        locate_per_problem=items,
    )
    Run(path, config).locate("gpo")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def serving(run: Path, annotators: int, items: int) -> Iterator[list[str]]:
    """A server over a run; the personal links."""
    command = [sys.executable, "-m", "gpo", "annotate", str(run), "--port", str(free_port())]
    command += ["--annotators", str(annotators), "--items", str(items)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            links: list[str] = []
            while len(links) < annotators:
                line = server.stdout.readline() if server.stdout else ""
                if not line:
                    raise SystemExit("The server ended before it served.")
                links += re.findall(r"http\S+/join/\S+", line)
            wait_for(links[0])
            yield links
        finally:
            server.terminate()


def wait_for(link: str) -> None:
    """Return when the server accepts connections."""
    url = httpx.URL(link)
    until = time.monotonic() + START
    while time.monotonic() < until:
        try:
            socket.create_connection((url.host, url.port or 80), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"The server did not start within {START} seconds.")


async def annotate(link: str, think: float, rng: Random, times: Times) -> int:
    """Go through everything that one annotator is shown; the number of acknowledged marks."""
    await asyncio.sleep(rng.uniform(0, think))
    # Certificates, which nothing here is asked for, take longer to load than all of an annotator's requests.
    # A connection that the server is about to close is one that browsers try again on; here each request has its own.
    own = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(
        base_url=str(httpx.URL(link).join("/")), timeout=120, verify=False, limits=own
    ) as client:

        async def ask(kind: str, method: str, path: str, status: int, data: dict[str, str] | None = None) -> str:
            began = time.perf_counter()
            response = await client.request(method, path, data=data)
            times[kind].append(time.perf_counter() - began)
            if response.status_code != status:
                raise SystemExit(f"{method} {path} was answered {response.status_code}, expected {status}.")
            return response.text

        await ask("join", "GET", httpx.URL(link).path, 303)
        page = await ask("page", "GET", "/", 200)
        marked = 0
        while steps := STEP.findall(page):
            await asyncio.sleep(rng.expovariate(1 / think) if think else 0)
            form = dict(FIELD.findall(page)) | {"kind": "step", "step": rng.choice(steps), "comment": "because"}
            await ask("mark", "POST", "/mark", 303, form)
            marked += 1
            page = await ask("page", "GET", "/", 200)
    return marked


async def load(links: list[str], think: float, seed: int) -> tuple[Times, int, float]:
    """All annotators at once: times, acknowledged marks, and seconds from the first to the last request."""
    times: Times = defaultdict(list)
    began = time.perf_counter()
    marked = await asyncio.gather(
        *(annotate(link, think, Random(f"{seed}/{i}"), times) for i, link in enumerate(links))
    )
    return times, sum(marked), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast the annotation pages answer when many people mark at once.")
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--items", type=int, default=20)
    parser.add_argument("--think", type=float, default=2.0, help="mean seconds between a page and its mark")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON lines to add the numbers to, for benchmarks/reliability.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        make_run(run, options.items)
        with serving(run, options.annotators, options.items) as links:
            times, marked, seconds = asyncio.run(load(links, options.think, options.seed))
        kept = len(Marks(run / "annotations.sqlite").all())
    requests = sum(map(len, times.values()))
    print(f"{options.annotators} annotators, {requests} requests in {seconds:.1f} s: {requests / seconds:.0f} a second")
    print(f"{'milliseconds':<14}{'n':>6}" + "".join(f"{name:>8}" for name in ("median", "p95", "p99", "most")))
    for kind, taken in [*times.items(), ("all", [each for some in times.values() for each in some])]:
        quantiles = 1000 * np.percentile(taken, (50, 95, 99, 100))
        print(f"{kind:<14}{len(taken):>6}" + "".join(f"{quantile:>8.1f}" for quantile in quantiles))
    print(f"{marked} marks acknowledged, {kept} in the database")
    if marked != kept:
        raise SystemExit(1)
    if options.out is not None:
        median, late = 1000 * np.percentile([each for some in times.values() for each in some], (50, 95))
        measured = (
            f"{requests / seconds:.0f} requests a second, answered in {median:.0f} ms (median) and {late:.0f} ms "
            f"(95%); {marked:,} marks acknowledged, {kept:,} kept"
        )
        row = {"what": f"{options.annotators} annotators at once, {options.think:g} s a solution", "measured": measured}
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
