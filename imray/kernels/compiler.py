"""How a kernel is compiled: once for all processes (cached on disk), and running without the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba as nb

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """Compile a function over arrays and numbers when it is first called."""
    return cast(F, nb.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)(function))
