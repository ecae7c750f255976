"""Fingerprints of ids and payloads, over whole columns at once (compiled by numba, GIL released).

Owns the functions whose values are stored or compared over restarts: they may not change for a data folder.
Does not own tables or filters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types

from imray.kernels.arrays import I32, U64
from imray.kernels.arrays import U8 as U8  # benchmarks import it from here
from imray.kernels.compiler import jit, word_intrinsic

# XXH64's primes, https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


@word_intrinsic
def _u64_at(_typing: Any, address: Any) -> Any:
    """Eight bytes at an address, aligned or not, as a little-endian integer; the caller keeps within bounds."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(pointer, align=1, typ=ir.IntType(64))

    return types.uint64(types.int64), codegen


@word_intrinsic
def _u32_at(_typing: Any, address: Any) -> Any:
    """Four bytes, as `_u64_at`."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(32).as_pointer())
        return builder.zext(builder.load(pointer, align=1, typ=ir.IntType(32)), ir.IntType(64))

    return types.uint64(types.int64), codegen


@word_intrinsic
def _u8_at(_typing: Any, address: Any) -> Any:
    """One byte, as `_u64_at`."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        return builder.zext(builder.load(pointer, align=1, typ=ir.IntType(8)), ir.IntType(64))

    return types.uint64(types.int64), codegen


@jit
def _rotl(x: np.uint64, r: int) -> np.uint64:
    return np.uint64((x << np.uint64(r)) | (x >> np.uint64(64 - r)))


@jit
def _round(acc: np.uint64, word: np.uint64) -> np.uint64:
    return np.uint64(_rotl(np.uint64(acc + word * _P2), 31) * _P1)


@jit
def mix(h: np.uint64) -> np.uint64:
    """XXH64's avalanche: every bit of the input moves every bit of the output."""
    h ^= h >> np.uint64(33)
    h *= _P2
    h ^= h >> np.uint64(29)
    h *= _P3
    return np.uint64(h ^ (h >> np.uint64(32)))


@jit
def _xxh64(at: np.int64, end: np.int64) -> np.uint64:
    n = end - at
    if n >= 32:
        v1 = np.uint64(_P1 + _P2)
        v2 = _P2
        v3 = np.uint64(0)
        v4 = np.uint64(np.uint64(0) - _P1)
        while end - at >= 32:
            v1 = _round(v1, _u64_at(at))
            v2 = _round(v2, _u64_at(at + 8))
            v3 = _round(v3, _u64_at(at + 16))
            v4 = _round(v4, _u64_at(at + 24))
            at += 32
        h = np.uint64(_rotl(v1, 1) + _rotl(v2, 7) + _rotl(v3, 12) + _rotl(v4, 18))
        for v in (v1, v2, v3, v4):
            h = np.uint64((h ^ _round(np.uint64(0), v)) * _P1 + _P4)
    else:
        h = _P5
    h = np.uint64(h + np.uint64(n))
    while end - at >= 8:
        h = np.uint64(_rotl(np.uint64(h ^ _round(np.uint64(0), _u64_at(at))), 27) * _P1 + _P4)
        at += 8
    if end - at >= 4:
        h = np.uint64(_rotl(np.uint64(h ^ np.uint64(_u32_at(at) * _P1)), 23) * _P2 + _P3)
        at += 4
    while at < end:
        h = np.uint64(_rotl(np.uint64(h ^ np.uint64(_u8_at(at) * _P5)), 11) * _P1)
        at += 1
    return mix(h)


@jit
def hash_rows(data: U8, offsets: I32) -> U64:
    """XXH64 (seed 0) of each byte string data[offsets[i]:offsets[i+1]]."""
    n = len(offsets) - 1
    start = np.int64(data.ctypes.data)
    out = np.empty(n, np.uint64)
    for i in range(n):
        out[i] = _xxh64(start + offsets[i], start + offsets[i + 1])
    return out


@word_intrinsic
def _fold_product(_typing: Any, a: Any, b: Any) -> Any:
    """The two halves of the 128-bit product, one xored with the other."""

    def codegen(_context: Any, builder: Any, _sig: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))
        return builder.xor(builder.trunc(product, ir.IntType(64)), high)

    return types.uint64(types.uint64, types.uint64), codegen


@jit
def _keyed(at: np.int64, end: np.int64, key_a: np.uint64, key_b: np.uint64) -> np.uint64:
    n = end - at
    h = np.uint64(key_b ^ np.uint64(n))
    if n < 8:
        first = np.uint64(0)
        second = np.uint64(0)
        while at < end:
            first = np.uint64(first << np.uint64(8) | _u8_at(at))
            at += 1
    else:
        while end - at > 16:
            h = _fold_product(_u64_at(at) ^ key_a, _u64_at(at + 8) ^ h)
            at += 16
        # the last 16 bytes, which may overlap those before; of 8 to 15 bytes the two ends
        first = _u64_at(max(end - 16, end - n))
        second = _u64_at(end - 8)
    h = _fold_product(first ^ key_a, second ^ h)
    return _fold_product(h ^ key_b, np.uint64(n) ^ key_a)


@jit
def keyed_hashes(count: int, offsets: int, data: int, seed: np.uint64) -> U64:
    """A 64-bit fingerprint under a secret seed of each of `count` byte strings: those between the int32 at the address
    `offsets`, from the address `data` on.

    Who does not know the seed cannot make two strings with one value. XXH64 does not give that: its lanes collide by
    arithmetic, under a secret seed every second time. The scheme is that of wyhash (Wang Yi,
    https://github.com/wangyi-fudan/wyhash): words under a key, multiplied to 128 bits and folded. Values are stored
    (`imray.log.id_run`)."""
    # addresses, not arrays: of a small batch making arrays of its 13 buffers cost more than all the hashing, and each
    # mixture of writable and unaligned ones would be compiled by itself, for a second, when it first comes
    key_a = mix(seed ^ _P1)
    key_b = mix(seed ^ _P2)
    out = np.empty(count, np.uint64)
    end = np.int64(data + np.int64(_u32_at(offsets)))
    for i in range(count):
        start = end
        end = np.int64(data + np.int64(_u32_at(offsets + 4 * i + 4)))
        out[i] = _keyed(start, end, key_a, key_b)
    return out


@jit
def keyed_hashes_of(which: I32, count: int, offsets: int, data: int, seed: np.uint64) -> U64:
    """As `keyed_hashes`, of `count` byte strings between the int64 at the address `offsets`; only those that `which`
    names are hashed, the others are 0. Below 0 it names none."""
    key_a = mix(seed ^ _P1)
    key_b = mix(seed ^ _P2)
    known = np.zeros(count, np.bool_)
    out = np.zeros(count, np.uint64)
    for i in range(len(which)):
        k = which[i]
        if k >= 0 and not known[k]:
            start = np.int64(_u64_at(offsets + 8 * k))
            end = np.int64(_u64_at(offsets + 8 * k + 8))
            out[k] = _keyed(data + start, data + end, key_a, key_b)
            known[k] = True
    return out


@jit
def mix_keys(hashes: U64, indices: int, valid: int, first: int, keys: U64) -> None:
    """Fold the key of each row's dictionary value into its hash, in place: the int32 at the address `indices` say which
    value, the bits from bit `first` on at the address `valid` (0: all are) which rows have one."""
    for i in range(len(hashes)):
        bit = first + i
        k = _P5
        if valid == 0 or (_u8_at(valid + bit // 8) >> np.uint64(bit % 8)) & np.uint64(1):
            k = keys[_u32_at(indices + 4 * i)]
        hashes[i] = mix(np.uint64(_rotl(hashes[i], 17) ^ k))


@jit
def id_fingerprints(ids: U64, conv: I32, conv_keys: U64, seed: np.uint64) -> U64:
    """A 64-bit fingerprint of (conversation, 128-bit id) for each row of ids (n, 2).

    `seed` is secret to a data folder: clients choose ids, and may not choose their places in the tables."""
    n = len(ids)
    out = np.empty(n, np.uint64)
    for i in range(n):
        h = mix(np.uint64(ids[i, 0] ^ seed))
        h = mix(np.uint64(_rotl(h, 23) ^ ids[i, 1]))
        out[i] = mix(np.uint64(h * _P1 + conv_keys[conv[i]]))
    return out
