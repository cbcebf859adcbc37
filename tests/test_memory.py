"""Memory goes back after work that needed much, and nobody waits for it after work that needed little."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from autointerp.memory import give_back_memory


class Held:
    """What only the collector frees, for it holds itself."""

    def __init__(self, size: int) -> None:
        self.content, self.itself = b"x" * size, self


def test_what_work_left_behind_is_freed_where_it_is_much_and_left_where_it_is_little() -> None:
    gc.disable()
    try:
        give_back_memory()
        little: Any = weakref.ref(Held(1000))
        give_back_memory()
        assert little() is not None
        much: Any = weakref.ref(Held(1 << 28))
        give_back_memory()
        assert (much(), little()) == (None, None)
    finally:
        gc.enable()
