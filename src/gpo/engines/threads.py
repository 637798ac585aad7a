"""The threads that torch computes with on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def threads() -> int:
    """How many of them work at a time; 1 where there is a GPU, which they only wait for."""
    return 1 if torch.cuda.is_available() else torch.get_num_threads()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
