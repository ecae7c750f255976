"""How a kernel is compiled: once for all processes (cached on disk), and running without the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import numba as nb
import numpy as np
from numba import extending

F = TypeVar("F", bound=Callable[..., object])


def jit(function: F) -> F:
    """Compile a function over arrays and numbers when it is first called."""
    return cast(F, nb.njit(cache=True, nogil=True, error_model="numpy", boundscheck=False)(function))


def word_intrinsic(build: Callable[..., object]) -> Callable[..., np.uint64]:
    """A function that gives one 64-bit word, written as LLVM code (numba has no types for that: `Any`)."""
    return cast(Callable[..., np.uint64], extending.intrinsic(build))
