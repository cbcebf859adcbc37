"""Memory that was freed goes back to the system: allocators keep it, and the next peak would come on top."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

NOT_IN_KEYS = "it changes no result"

_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 1 << 19


def map_large_blocks() -> None:
    """From now on glibc gives blocks of `_LARGE` bytes pages of their own, which go back when the block is freed. It
    would raise that size to that of the last such block."""
    with suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def give_back_memory() -> None:
    """Of Python, Arrow and the C library; call it after work that needed much, such as a stage."""
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # another C library than glibc has no such call
        ctypes.CDLL(None).malloc_trim(0)
