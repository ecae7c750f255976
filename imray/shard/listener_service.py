"""What a log's writer answers over RPC about listeners: subscriptions, and signals that it passes on."""

from __future__ import annotations

from imray.core.errors import InvalidError
from imray.core.replies import Refusal, Refused
from imray.rpc import messages
from imray.rpc.endpoint import Parts
from imray.rpc.methods import Method
from imray.rpc.publications import SignalArgs, SubscribeArgs, encode_subscribe_answer
from imray.rpc.server import Handler, ServerConnection
from imray.shard.partition_writer import PartitionWriter
from imray.shard.shard_writer import ShardWriter


def listener_handlers(writer: ShardWriter | PartitionWriter) -> dict[Method, Handler]:
    """The methods about listeners."""

    async def subscribe(content: memoryview, caller: ServerConnection) -> Parts:
        try:
            args = messages.decode_struct(content, SubscribeArgs)
        except InvalidError as e:
            return encode_subscribe_answer(Refusal(Refused.INVALID, str(e)))
        return encode_subscribe_answer(await writer.subscribe(caller, args))

    def signal(content: memoryview, _caller: ServerConnection) -> Parts:
        try:
            conv_id = messages.decode_struct(content, SignalArgs).conv_id
        except InvalidError as e:
            return messages.encode_done(Refusal(Refused.INVALID, str(e)))
        writer.publisher.signal(conv_id, (content,))
        return messages.encode_done(None)

    return {Method.SUBSCRIBE: subscribe, Method.SIGNAL: signal}
