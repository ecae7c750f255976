"""Words of memory by their address, for kernels: the caller keeps within bounds, and keeps the memory alive."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from imray.kernels.compiler import word_intrinsic

_WORD = ir.IntType(64)
_NUMBER = ir.IntType(32)


@word_intrinsic
def u64_at(_typing: Any, address: Any) -> Any:
    """Eight bytes at an address, aligned or not, as a little-endian integer."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _WORD.as_pointer()), align=1, typ=_WORD)

    return types.uint64(types.int64), codegen


@word_intrinsic
def put_u64(_typing: Any, address: Any, word: Any) -> Any:
    """Write eight bytes at an address, aligned or not; gives them back."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _WORD.as_pointer()), align=1)
        return args[1]

    return types.uint64(types.int64, types.uint64), codegen


@word_intrinsic
def prefetch(_typing: Any, address: Any) -> Any:
    """Have the memory at an address brought into the cache; nothing waits for it."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _NUMBER, _NUMBER, _NUMBER])
        function = builder.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        for_reading = ir.Constant(_NUMBER, 0)
        kept = ir.Constant(_NUMBER, 3)
        data = ir.Constant(_NUMBER, 1)
        builder.call(function, [builder.inttoptr(args[0], pointer), for_reading, kept, data])
        return ir.Constant(_WORD, 0)

    return types.uint64(types.int64), codegen
