"""Memory that was freed goes back to the system: allocators keep it, and the next peak would come on top."""

from __future__ import annotations

import ctypes
import gc
import os
from contextlib import suppress
from pathlib import Path

NOT_IN_KEYS = "it changes no result"

_MMAP_THRESHOLD = -3  # of malloc.h
_LARGE = 1 << 19
_LITTLE = 1 << 24  # bytes that are not worth asking the allocators for
_SOME = 1 << 26  # bytes that are not worth the time it takes to look through all objects
_least = _collected = 0  # bytes in memory: the least since memory was given back, and since objects were looked through


def map_large_blocks() -> None:
    """From now on glibc gives blocks of `_LARGE` bytes pages of their own, which go back when the block is freed. It
    would raise that size to that of the last such block."""
    with suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)


def give_back_memory() -> None:
    """Of Python, Arrow and the C library; call it after work that needed much, such as a stage. Little is done where
    the process has grown little since the last time, and nothing where it has hardly grown."""
    global _least, _collected
    resident = _resident()
    if resident is not None and resident < _least + _LITTLE:
        _least, _collected = min(_least, resident), min(_collected, resident)
        return
    import pyarrow as pa

    collects = resident is None or resident >= _collected + _SOME
    if collects:
        gc.collect()
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # another C library than glibc has no such call
        ctypes.CDLL(None).malloc_trim(0)
    _least = _resident() or 0
    _collected = _least if collects else min(_collected, _least)


def available() -> int | None:
    """Bytes of this machine that a process can still have; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _resident() -> int | None:
    """Bytes of this process in memory; None where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
