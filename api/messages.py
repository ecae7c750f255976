"""Sending: one message, and many at once."""

from __future__ import annotations

import logging

import numpy as np
import orjson
import pyarrow as pa
from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from api.arrow import check_batch_arrow
from api.auth import Authenticator, Caller
from api.checks import check_batch_json, check_message, media_type, read_body, receive_body, single_bytes_max
from api.columns import send_columns
from api.docs import json_body, problems
from api.door import Answer, RawRoute, SendHandler, SendHeaders, headers_of
from api.outcomes import ARROW_TYPE, CONFLICT, CREATED, DUPLICATE, Outcomes
from api.problems import ProblemError, refused, unexpected
from api.schemas import BatchRequest, BatchResponse, PathConvId, SendRequest, SendResponse
from imray.core.ids import format_client_msg_id
from imray.core.replies import NOT_A_MEMBER, WAITS, Refusal, Refused
from imray.core.routing import offset_of
from imray.engine.batcher import SendAnswer
from imray.engine.engine import Engine
from imray.engine.sends import Send

log = logging.getLogger("imray.messages")

_JSON = "application/json"


def routes(engine: Engine, auth: Authenticator) -> tuple[APIRouter, SendHandler]:
    """The routes of this module, and the endpoint of a single send."""
    router = APIRouter(tags=["messages"], route_class=RawRoute)
    settings = engine.settings
    rates = auth.rates
    send_one = _single(engine, auth)

    @router.post(
        "/v1/conversations/{conv_id}/messages",
        summary="Send one message",
        status_code=201,
        response_model=SendResponse,
        responses={
            200: {"model": SendResponse, "description": "A retry: the first send's numbers."},
            **problems(400, 401, 403, 409, 413, 415, 422, 429, 500, 503, 504),
        },
        openapi_extra=json_body(SendRequest),
    )
    async def send(conv_id: PathConvId, request: Request) -> Response:
        """The answer comes when the message is durable. 409 carries the first `conv_seq` of the id.
        After 503 or 504 retry with the same `client_msg_id`."""
        status, content = await send_one(conv_id, headers_of(request.scope["headers"]), request.receive)
        return Response(content, status, media_type=_JSON)

    @router.post(
        "/v1/messages:batch",
        summary="Send many messages",
        response_model=BatchResponse,
        responses={
            200: {"model": BatchResponse, "content": {ARROW_TYPE: {}}},
            **problems(400, 401, 403, 413, 415, 422, 429, 500, 503, 504),
        },
        openapi_extra=json_body(BatchRequest, ARROW_TYPE),
    )
    async def send_batch(request: Request) -> Response:
        """Over one or several conversations; order is kept per conversation, and each message has its own outcome.
        A malformed message refuses the whole request. An Arrow IPC stream has the columns conv_id, client_msg_id
        (16 bytes or text) and body, optionally sender, topic, content_type and client_ts; its answer is one, too."""
        caller = auth.caller(request.headers.get("authorization"))
        kind = media_type(request.headers.get("content-type"), _JSON, ARROW_TYPE)
        data = await read_body(request, settings.request_bytes_max)
        conv_ids: list[str] = []
        if kind == ARROW_TYPE:
            batch = check_batch_arrow(data, caller, settings)
        else:
            batch, conv_ids = check_batch_json(data, caller, settings)
        rates.messages(caller.sender, caller.service, batch.num_rows)
        return _many(await send_columns(engine, batch, caller.service), conv_ids, batch, kind)

    return router, send_one


def _single(engine: Engine, auth: Authenticator) -> SendHandler:
    """The endpoint of a single send: from the caller's token to the answer."""
    settings = engine.settings
    bytes_max = single_bytes_max(settings)
    rates = auth.rates

    async def send_one(conv_id: str, headers: SendHeaders, receive: Receive) -> Answer:
        try:
            caller = auth.caller(headers.authorization)
            media_type(headers.content_type, _JSON)
            data = await receive_body(headers.content_length, receive, bytes_max)
            message = check_message(data, conv_id, caller, settings)
            rates.messages(caller.sender, caller.service, 1)
            return _one(message, await engine.send(message), engine.shard_of(conv_id), caller)
        except (ProblemError, ClientDisconnect):
            raise
        except Exception as e:
            # this way does not lead through the framework, which catches such things for the others
            log.exception("a send failed")
            raise unexpected() from e

    return send_one


def _one(send: Send, sent: SendAnswer, shard: int, caller: Caller) -> Answer:
    answer, i = sent
    if isinstance(answer, Refusal):
        raise refused(answer, caller.service)
    status = CREATED
    epoch = answer.epoch
    log_position = answer.log_position
    server_ts = answer.server_ts
    row = answer.row + i
    seq = answer.seq + i if isinstance(answer.seq, int) else int(answer.seq[i])
    stable = answer.stable if isinstance(answer.stable, int) else int(answer.stable[i])
    firsts = answer.firsts
    if firsts is not None:
        before = int(np.searchsorted(firsts.at, i))
        row -= before
        if before < len(firsts.at) and firsts.at[before] == i:
            if firsts.waiting[before]:
                raise refused(Refusal(Refused.UNAVAILABLE, WAITS), caller.service)
            if firsts.forbidden[before]:
                raise refused(Refusal(Refused.FORBIDDEN, NOT_A_MEMBER), caller.service)
            if firsts.unreadable[before]:
                raise refused(Refusal(Refused.CORRUPT, firsts.why), caller.service)
            status = CONFLICT if firsts.conflict[before] else DUPLICATE
            epoch = int(firsts.epoch[before])
            log_position = int(firsts.log_position[before])
            server_ts = int(firsts.server_ts[before])
            row = int(firsts.row[before])
    if status == CONFLICT:
        detail = "the client_msg_id was used with another payload: make a new id for a new message"
        raise ProblemError(409, "conflict", detail, conv_id=send.conv_id, conv_seq=seq)
    log, segment = offset_of(shard, log_position)
    content = {
        "conv_id": send.conv_id,
        "conv_seq": seq,
        "client_msg_id": format_client_msg_id(send.client_msg_id),
        "duplicate": status == DUPLICATE,
        "epoch": epoch,
        "offset": {"shard": log, "segment": segment, "row": row},
        "server_ts": server_ts,
        "stable_seq": stable,
    }
    return Answer(status, orjson.dumps(content))


def _many(outcomes: Outcomes, conv_ids: list[str], batch: pa.RecordBatch, kind: str) -> Response:
    _all_failed(outcomes)
    if kind == ARROW_TYPE:
        return Response(outcomes.arrow().to_pybytes(), media_type=ARROW_TYPE)
    return Response(outcomes.json(conv_ids, batch.column("client_msg_id")), media_type=_JSON)


def _all_failed(outcomes: Outcomes) -> None:
    """Where every message failed in one way, the request did."""
    failures = outcomes.failures
    if len(failures) < len(outcomes.status) or len(set(failures.tolist())) != 1:
        return
    status = int(failures[0])
    kinds = {403: "forbidden", 422: "invalid", 500: "corrupt", 503: "busy", 504: "unavailable"}
    if status in kinds:
        retry_after_s = 1.0 if status in (503, 504) else None
        raise ProblemError(status, kinds[status], outcomes.details.get(status, "no shard answered"), retry_after_s)
