"""What calls are called with, as messages; and any typed structure as one, figures among them.

Owns their form on the wire. An ask has columns: `imray.rpc.grants`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec

from imray.core.grants import Report
from imray.core.status import MergerStatus, PartitionStatus, ShardStatus
from imray.rpc.endpoint import Parts
from imray.rpc.packing import Count, Int, encoder
from imray.rpc.packing import decode_struct as decode_struct

_DIGEST_BYTES_MAX = 64
_REPORTS_MAX = 4096
"""A partition has a handful of grants outstanding: this is far above, and keeps a list from taking memory."""
WireReport = tuple[Int, Int, Int, Annotated[bytes, msgspec.Meta(max_length=_DIGEST_BYTES_MAX)]]
WireReports = Annotated[list[WireReport], msgspec.Meta(max_length=_REPORTS_MAX)]


class LocateArgs(NamedTuple):
    """Of Method.LOCATE: numbers `low` .. `high` of a conversation."""

    conv_id: str
    low: Int
    high: Int


class MakeHotArgs(NamedTuple):
    """Of Method.MAKE_HOT."""

    conv_id: str
    partitions: Count
    """0: make it cold."""


class RegisterArgs(NamedTuple):
    """Of Method.REGISTER: the writer of a partition, and the segment that it fenced its log with."""

    slot: Count
    epoch: Int
    segment: Int


class ReportArgs(NamedTuple):
    """Of Method.REPORT."""

    slot: int
    epoch: int
    reports: list[Report]


class _WireReportArgs(NamedTuple):
    slot: Count
    epoch: Int
    reports: WireReports


def encode_struct(value: object) -> Parts:
    """A typed structure of msgspec's, or a NamedTuple."""
    return (encoder.encode(value),)


def encode_locate(conv_id: str, low: int, high: int) -> Parts:
    """Of Method.LOCATE."""
    return encode_struct(LocateArgs(conv_id, low, high))


def decode_locate(data: memoryview) -> LocateArgs:
    """The inverse of `encode_locate`. InvalidError where it is malformed; so for all of this module."""
    return decode_struct(data, LocateArgs)


def encode_make_hot(conv_id: str, partitions: int) -> Parts:
    """Of Method.MAKE_HOT."""
    return encode_struct(MakeHotArgs(conv_id, partitions))


def decode_make_hot(data: memoryview) -> MakeHotArgs:
    """The inverse of `encode_make_hot`."""
    return decode_struct(data, MakeHotArgs)


def encode_mend(file: str) -> Parts:
    """Of Method.MEND: the derived file's name in the store."""
    return encode_struct(file)


def decode_mend(data: memoryview) -> str:
    """The inverse of `encode_mend`."""
    return decode_struct(data, str)


def decode_shard_status(data: memoryview) -> ShardStatus:
    """The answer to Method.STATUS of a shard: `encode_struct` of it."""
    return decode_struct(data, ShardStatus)


def decode_merger_status(data: memoryview) -> MergerStatus:
    """The answer to Method.STATUS of the merger: `encode_struct` of it."""
    return decode_struct(data, MergerStatus)


def decode_partition_status(data: memoryview) -> PartitionStatus:
    """The answer to Method.STATUS of a partition: `encode_struct` of it."""
    return decode_struct(data, PartitionStatus)


def encode_register(slot: int, epoch: int, segment: int) -> Parts:
    """Of Method.REGISTER."""
    return encode_struct(RegisterArgs(slot, epoch, segment))


def decode_register(data: memoryview) -> RegisterArgs:
    """The inverse of `encode_register`."""
    return decode_struct(data, RegisterArgs)


def encode_report(slot: int, epoch: int, reports: Sequence[Report]) -> Parts:
    """Of Method.REPORT."""
    return encode_struct(_WireReportArgs(slot, epoch, to_wire(reports)))


def decode_report(data: memoryview) -> ReportArgs:
    """The inverse of `encode_report`."""
    slot, epoch, reports = decode_struct(data, _WireReportArgs)
    return ReportArgs(slot, epoch, from_wire(reports))


def to_wire(reports: Sequence[Report]) -> list[WireReport]:
    """Reports as they stand in a message."""
    return [(r.grant, r.segment, r.server_ts, r.digest) for r in reports]


def from_wire(reports: list[WireReport]) -> list[Report]:
    """The inverse of `to_wire`."""
    return [Report(grant, segment, server_ts, digest) for grant, segment, server_ts, digest in reports]
