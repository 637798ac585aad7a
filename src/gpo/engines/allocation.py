"""What becomes of memory that torch frees on a CPU.

A small model's stays with the process: the next tensor does not fault its pages in again. That of a large one goes back
to the system, since tensors of a hundred megabytes and of many sizes would leave holes that nothing fits.
"""

from __future__ import annotations

import ctypes

# Parameters of glibc's mallopt.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
LARGE = 2**31 - 1  # bytes; mallopt takes an int


def keep_freed_memory() -> bool:
    """Tell glibc to give no memory back and to map none apart; whether it did, False with another C library.

    The command `gpo` does so. From Python, call it once at the start: sampling and training of small models on a CPU
    take large tensors and free them at every step. Memory in use rises to its peak and stays there.
    """
    return _set((MMAP_MAX, 0), (TRIM_THRESHOLD, LARGE), (TOP_PAD, 2**28))


def give_back_freed_memory() -> bool:
    """Tell glibc to map blocks of a megabyte or more apart, which go when they are freed, and to give back the rest.

    The engine `hf` does so for a large model on a CPU. False with another C library.
    """
    done = _set((MMAP_MAX, 1 << 16), (MMAP_THRESHOLD, 1 << 20), (TRIM_THRESHOLD, 1 << 26), (TOP_PAD, 1 << 20))
    return done and bool(ctypes.CDLL(None).malloc_trim(0) >= 0)


def _set(*settings: tuple[int, int]) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(min(mallopt(name, value) for name, value in settings) == 1)
