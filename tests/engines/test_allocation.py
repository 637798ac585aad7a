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
