"""Freed memory stays with the process."""

import subprocess
import sys

import pytest

PROBE = """
import resource, sys
from gpo.engines.allocation import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print(-1)
    raise SystemExit
def touch():
    block = bytearray(32_000_000)
    block[::4096] = b"x" * len(block[::4096])
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROBE, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


def test_memory_that_was_freed_is_not_faulted_in_again() -> None:
    kept = faults("keep")
    if kept < 0:
        pytest.skip("another C library than glibc")
    assert kept < faults("plain") / 10


GIVEN_BACK = """
from pathlib import Path
from gpo.engines.allocation import give_back_freed_memory, keep_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
if not (keep_freed_memory() and give_back_freed_memory()):
    print(-1, -1)
    raise SystemExit
blocks = [bytearray(b"x") * 1_000_000 for _ in range(200)]
last = bytearray(b"x") * 1_000_000  # so that what is free is not at the end of the heap
del blocks
kept = resident()
give_back_freed_memory()
print(kept, resident())
"""


def test_freed_memory_is_given_back_when_it_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    if kept < 0:
        pytest.skip("another C library than glibc")
    assert kept - left > 150_000_000
