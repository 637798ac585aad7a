"""What becomes of memory that torch frees on a CPU: it stays with the process until somebody asks for it.

The next tensor does not fault its pages in again, which is a quarter of the time of sampling half a billion parameters.
But tensors of a hundred megabytes and of many sizes leave holes that nothing fits, so that a large model's is given
back between one call and the next.
"""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
LARGE = 2**31 - 1  # bytes; mallopt takes an int


def keep_freed_memory() -> bool:
    """Tell glibc to give no memory back and to map none apart; whether it did, False with another C library.

    The command `gpo` does so. From Python, call it once at the start: sampling and training of small models on a CPU
    take large tensors and free them at every step. Memory in use rises to its peak and stays there.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    settings = ((MMAP_MAX, 0), (TRIM_THRESHOLD, LARGE), (TOP_PAD, 2**28))
    return bool(min(mallopt(name, value) for name, value in settings) == 1)


def give_back_freed_memory() -> bool:
    """Give all pages that are free now back to the system; False with another C library than glibc."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return False
    return True
