"""What a process answers over RPC for its writer: each method decoded, called, and its answer encoded.

Owns the tables from methods to writers. Does not own the bytes (`imray.rpc.messages`), nor what a call means.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Mapping
from typing import Any

import msgspec

from imray.core.errors import InvalidError
from imray.core.replies import Refusal, Refused
from imray.core.routing import check_conv_id
from imray.core.status import PartitionStatus, ShardStatus
from imray.rpc import messages
from imray.rpc.endpoint import Parts
from imray.rpc.methods import Method
from imray.rpc.server import Handler, ServerConnection
from imray.shard.listener_service import listener_handlers
from imray.shard.member_service import member_handlers
from imray.shard.partition_writer import PartitionWriter
from imray.shard.shard_writer import ShardWriter

Handlers = Mapping[Method, Handler]


async def shard_status(writer: ShardWriter) -> ShardStatus:
    """A shard's figures, with this process's id."""
    return msgspec.structs.replace(await writer.status(), pid=os.getpid())


async def partition_status(writer: PartitionWriter) -> PartitionStatus:
    """A partition's figures, with this process's id."""
    return msgspec.structs.replace(await writer.status(), pid=os.getpid())


def _malformed(error: InvalidError) -> Refusal:
    """What a caller is told whose message says nothing that can be done: the same again would not help."""
    return Refusal(Refused.INVALID, str(error))


def shard_handlers(writer: ShardWriter) -> Handlers:
    """What gateways, operators and partitions ask of a shard."""

    async def append(content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_append_answer(await writer.append(content))

    async def locate(content: memoryview, _caller: ServerConnection) -> Parts:
        try:
            arguments = messages.decode_locate(content)
        except InvalidError as e:
            return messages.encode_locate_answer(_malformed(e))
        return messages.encode_locate_answer(await writer.locate(*arguments))

    async def mend(content: memoryview, _caller: ServerConnection) -> Parts:
        try:
            file = messages.decode_mend(content)
        except InvalidError as e:
            return messages.encode_done(_malformed(e))
        return messages.encode_done(await writer.mend(file))

    async def make_hot(content: memoryview, _caller: ServerConnection) -> Parts:
        try:
            arguments = messages.decode_make_hot(content)
            check_conv_id(arguments.conv_id)
        except InvalidError as e:
            return messages.encode_done(_malformed(e))
        return messages.encode_done(await writer.make_hot(*arguments))

    async def status(_content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_struct(await shard_status(writer))

    return {
        Method.APPEND: append,
        Method.LOCATE: locate,
        Method.MEND: mend,
        Method.MAKE_HOT: make_hot,
        Method.STATUS: status,
        **_of_partitions(writer),
        **listener_handlers(writer),
        **member_handlers(writer.members),
    }


def _of_partitions(writer: ShardWriter) -> Handlers:
    """What partitions ask of their home shard."""

    async def register(content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_register_answer(await writer.register(*messages.decode_register(content)))

    def ask(content: memoryview, _caller: ServerConnection) -> Parts | Coroutine[Any, Any, Parts]:
        arguments = messages.decode_ask(content)
        at_once = writer.ask_now(*arguments)
        return ask_later(arguments) if at_once is None else messages.encode_ask_answer(at_once)

    async def ask_later(arguments: messages.Ask) -> Parts:
        return messages.encode_ask_answer(await writer.ask(*arguments))

    def report(content: memoryview, _caller: ServerConnection) -> Parts | Coroutine[Any, Any, Parts]:
        arguments = messages.decode_report(content)
        return messages.encode_done(None) if writer.report_now(*arguments) else report_later(arguments)

    async def report_later(arguments: messages.ReportArgs) -> Parts:
        return messages.encode_done(await writer.report(*arguments))

    return {Method.REGISTER: register, Method.ASK: ask, Method.REPORT: report}


def partition_handlers(writer: PartitionWriter) -> Handlers:
    """What gateways ask of a partition."""

    async def append(content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_append_answer(await writer.append(content))

    async def status(_content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_struct(await partition_status(writer))

    return {Method.APPEND: append, Method.STATUS: status, **listener_handlers(writer)}
