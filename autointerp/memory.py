"""Memory that was freed goes back to the system: allocators keep it, and the next peak would come on top."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress

NOT_IN_KEYS = "it changes no result"


def share_one_allocator() -> None:
    """Let Arrow allocate with the C library, as Python and torch do. What its own allocator keeps for each of its
    threads cannot be given back from another thread: .1 GB in a run over 100,000 features."""
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())


def give_back_memory() -> None:
    """Of Python, Arrow and the C library; call it after work that needed much, such as a stage."""
    import pyarrow as pa

    gc.collect()
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # another C library than glibc has no such call
        ctypes.CDLL(None).malloc_trim(0)
