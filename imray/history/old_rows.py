"""Rows of the history's runs as columns of old ids (`imray.kernels.packing`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from imray.core.routing import home_of, log_position_of
from imray.kernels import packing
from imray.kernels.arrays import U64
from imray.kernels.hashing import hash_rows, id_fingerprints
from imray.log.schema import RecordKind, body_parts, dictionary_rows, id_words, payloads_of
from imray.log.sealed import conversation_keys

_TEXTS = ("sender", "topic", "content_type")
OLD_ROW_COLUMNS = [
    *("conv_id", "conv_seq", "kind", "client_msg_id", *_TEXTS, "server_ts", "body"),
    *("log", "segment", "row", "epoch"),
]


def ids_of(rows: pa.Table, wanted: Mapping[int, tuple[int, int]], seed: int) -> U64:
    """The ids (COLUMNS, rows) of the messages of some logs' segments, first and last of each in `wanted`."""
    log = rows.column("log").to_numpy()
    segment = rows.column("segment").to_numpy()
    mask = np.zeros(len(log), np.bool_)
    for number, (first, last) in wanted.items():
        mask |= (log == number) & (segment >= first) & (segment <= last)
    mask &= rows.column("kind").to_numpy() == RecordKind.MESSAGE
    if not mask.any():
        return np.empty((packing.COLUMNS, 0), np.uint64)
    batch = rows.filter(pa.array(mask)).combine_chunks().to_batches()[0]
    conv = batch.column("conv_id").dictionary_encode()
    names_data, names_offsets = body_parts(conv.dictionary)
    local = dictionary_rows(conv)
    words = id_words(batch.column("client_msg_id").cast(pa.binary(16)))
    texts = [batch.column(name).dictionary_encode() for name in _TEXTS]
    numbers, which = np.unique(log[mask], return_inverse=True)
    slots = np.array([log_position_of(home_of(number)[1], 0) for number in numbers.tolist()], np.int64)
    out = np.empty((packing.COLUMNS, batch.num_rows), np.uint64)
    out[packing.FP] = id_fingerprints(words, local, hash_rows(names_data, names_offsets), np.uint64(seed))
    out[packing.ID_LOW : packing.ID_HIGH + 1] = words.T
    out[packing.CONV] = conversation_keys(names_offsets, names_data, seed)[local]
    out[packing.SEQ] = batch.column("conv_seq").to_numpy()
    out[packing.PAYLOAD] = payloads_of(batch.column("body"), texts, seed)
    out[packing.LOG_POSITION] = slots[which] | segment[mask]
    out[packing.ROW] = batch.column("row").to_numpy()
    out[packing.EPOCH] = batch.column("epoch").to_numpy()
    out[packing.SERVER_TS] = batch.column("server_ts").cast(pa.int64()).to_numpy() // 1000
    return out
