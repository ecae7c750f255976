"""Fingerprints of ids and payloads, over whole columns at once (compiled by numba, GIL released).

Owns the functions whose values are stored or compared over restarts: they may not change for a data folder.
Does not own tables or filters.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

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
def _load_u64(_typing: Any, data: Any, at: Any) -> Any:
    """Eight bytes of a uint8 array at any place as a little-endian integer; the caller keeps within bounds."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        array = context.make_array(sig.args[0])(context, builder, args[0])
        pointer = cgutils.gep_inbounds(builder, array.data, args[1])
        word = builder.bitcast(pointer, ir.IntType(64).as_pointer())
        return builder.load(word, align=1, typ=ir.IntType(64))

    return types.uint64(data, types.int64), codegen


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
def _xxh64(data: U8, at: np.int64, end: np.int64) -> np.uint64:
    n = end - at
    if n >= 32:
        v1 = np.uint64(_P1 + _P2)
        v2 = _P2
        v3 = np.uint64(0)
        v4 = np.uint64(np.uint64(0) - _P1)
        while end - at >= 32:
            v1 = _round(v1, _load_u64(data, at))
            v2 = _round(v2, _load_u64(data, at + 8))
            v3 = _round(v3, _load_u64(data, at + 16))
            v4 = _round(v4, _load_u64(data, at + 24))
            at += 32
        h = np.uint64(_rotl(v1, 1) + _rotl(v2, 7) + _rotl(v3, 12) + _rotl(v4, 18))
        for v in (v1, v2, v3, v4):
            h = np.uint64((h ^ _round(np.uint64(0), v)) * _P1 + _P4)
    else:
        h = _P5
    h = np.uint64(h + np.uint64(n))
    while end - at >= 8:
        h = np.uint64(_rotl(np.uint64(h ^ _round(np.uint64(0), _load_u64(data, at))), 27) * _P1 + _P4)
        at += 8
    if end - at >= 4:
        w = (
            np.uint64(data[at])
            | np.uint64(data[at + 1]) << np.uint64(8)
            | np.uint64(data[at + 2]) << np.uint64(16)
            | np.uint64(data[at + 3]) << np.uint64(24)
        )
        h = np.uint64(_rotl(np.uint64(h ^ np.uint64(w * _P1)), 23) * _P2 + _P3)
        at += 4
    while at < end:
        h = np.uint64(_rotl(np.uint64(h ^ np.uint64(np.uint64(data[at]) * _P5)), 11) * _P1)
        at += 1
    return mix(h)


@jit
def hash_rows(data: U8, offsets: I32) -> U64:
    """XXH64 (seed 0) of each byte string data[offsets[i]:offsets[i+1]]."""
    n = len(offsets) - 1
    out = np.empty(n, np.uint64)
    for i in range(n):
        out[i] = _xxh64(data, np.int64(offsets[i]), np.int64(offsets[i + 1]))
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
def _keyed(data: U8, at: np.int64, end: np.int64, key_a: np.uint64, key_b: np.uint64) -> np.uint64:
    n = end - at
    h = np.uint64(key_b ^ np.uint64(n))
    if n < 8:
        first = np.uint64(0)
        second = np.uint64(0)
        while at < end:
            first = np.uint64(first << np.uint64(8) | np.uint64(data[at]))
            at += 1
    else:
        while end - at > 16:
            h = _fold_product(_load_u64(data, at) ^ key_a, _load_u64(data, at + 8) ^ h)
            at += 16
        # the last 16 bytes, which may overlap those before; of 8 to 15 bytes the two ends
        first = _load_u64(data, max(end - 16, end - n))
        second = _load_u64(data, end - 8)
    h = _fold_product(first ^ key_a, second ^ h)
    return _fold_product(h ^ key_b, np.uint64(n) ^ key_a)


@jit
def keyed_hash_rows(data: U8, offsets: I32, seed: np.uint64) -> U64:
    """A 64-bit fingerprint of each byte string data[offsets[i]:offsets[i+1]] under a secret seed.

    Who does not know the seed cannot make two strings with one value. XXH64 does not give that: its lanes collide by
    arithmetic, under a secret seed every second time. The scheme is that of wyhash (Wang Yi,
    https://github.com/wangyi-fudan/wyhash): words under a key, multiplied to 128 bits and folded."""
    key_a = mix(seed ^ _P1)
    key_b = mix(seed ^ _P2)
    out = np.empty(len(offsets) - 1, np.uint64)
    for i in range(len(out)):
        out[i] = _keyed(data, np.int64(offsets[i]), np.int64(offsets[i + 1]), key_a, key_b)
    return out


@jit
def mix_keys(hashes: U64, index: I32, keys: U64) -> None:
    """Fold the key of each row's dictionary value (index -1: null) into its hash, in place."""
    for i in range(len(hashes)):
        k = keys[index[i]] if index[i] >= 0 else _P5
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
