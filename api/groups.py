"""Hot groups, for operators: a conversation spread over partitions, and back."""

from __future__ import annotations

import msgspec
import orjson
from fastapi import APIRouter, Request, Response

from api.auth import Authenticator
from api.checks import invalid, media_type, read_body, whole
from api.docs import json_body, problems
from api.door import RawRoute
from api.problems import SERVICE_HINT, ProblemError, refused
from api.schemas import PathConvId, TopicsRequest, TopicsResponse
from imray.core.errors import InvalidError
from imray.core.replies import Refusal
from imray.core.routing import PARTITIONS_MAX, check_conv_id
from imray.engine.engine import Engine

_BODY_BYTES_MAX = 1024
_FOR_SERVICES = f"only a token with the role `service` may change how a group is spread; {SERVICE_HINT}"


class _Topics(msgspec.Struct, forbid_unknown_fields=True):
    topics: int | float


def routes(engine: Engine, auth: Authenticator) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["hot groups"], route_class=RawRoute)

    @router.put(
        "/v1/conversations/{conv_id}/topics",
        summary="Spread a conversation over partitions",
        response_model=TopicsResponse,
        responses=problems(400, 401, 403, 413, 415, 422, 429, 500, 503, 504),
        openapi_extra=json_body(TopicsRequest),
    )
    async def topics(conv_id: PathConvId, request: Request) -> Response:
        """How many partitions take its sends; 0: its home shard alone. The answer comes when that is durable; senders
        see a pause at most. Needs a token with the role `service`."""
        if not auth.caller(request.headers.get("authorization")).service:
            raise ProblemError(403, "forbidden", _FOR_SERVICES)
        media_type(request.headers.get("content-type"), "application/json")
        wanted = _wanted(conv_id, await read_body(request, _BODY_BYTES_MAX))
        refusal = await engine.make_hot(conv_id, wanted)
        if isinstance(refusal, Refusal):
            raise refused(refusal, service=True)
        return Response(orjson.dumps({"conv_id": conv_id, "topics": wanted}), media_type="application/json")

    return router


def _wanted(conv_id: str, data: bytes) -> int:
    try:
        check_conv_id(conv_id)
        wanted = msgspec.json.decode(data, type=_Topics).topics
        if 0 <= wanted <= PARTITIONS_MAX:
            return whole(wanted, "topics")
    except (InvalidError, msgspec.ValidationError) as e:
        raise invalid(str(e)) from e
    except (msgspec.DecodeError, UnicodeError) as e:
        raise ProblemError(400, "invalid", f"not valid JSON: {e}") from e
    raise invalid(f"topics={wanted}: a whole number from 0 to {PARTITIONS_MAX}")
