"""Is it alive, is it ready, which version is it. Health needs no token."""

from __future__ import annotations

import asyncio
import time

import orjson
from fastapi import APIRouter, Request, Response

from api.auth import Authenticator
from api.docs import problems
from api.problems import SERVICE_HINT, ProblemError, without_files
from api.schemas import LiveResponse, ReadyResponse, StatusResponse, VersionResponse
from imray import __version__
from imray.core.status import ServingState, ShardStatus
from imray.engine.engine import Engine

_ASK_TIMEOUT_S = 6.0
"""Above what the shards have to answer; past it none of them has."""


class States:
    """Each shard's state, at most so old as `ready_interval_s` says: shards are asked once, however many want to know,
    and not while nobody does. Belongs to one event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, str] = {}
        self._known_s: float | None = None
        self._asking: asyncio.Task[None] | None = None

    async def get(self) -> dict[str, str]:
        """Each shard's state or why it does not serve, as anybody may know it."""
        interval_s = self._engine.settings.ready_interval_s
        if self._known_s is not None and time.monotonic() - self._known_s < interval_s:
            return self._known
        if self._asking is None:
            self._asking = asyncio.create_task(self._ask())
        # one of those who wait may go away; the others still want it
        await asyncio.shield(self._asking)
        return self._known

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_ASK_TIMEOUT_S):
                shards = await self._engine.status()
            self._known = {str(shard.shard): _plain(shard) for shard in shards}
        except TimeoutError:
            numbers = range(self._engine.manifest.shards)
            self._known = dict.fromkeys(map(str, numbers), "no answer in time")
        finally:
            self._known_s = time.monotonic()
            self._asking = None


_FOR_SERVICES = f"only a token with the role `service` may see the shards' figures; {SERVICE_HINT}"


def _plain(shard: ShardStatus) -> str:
    """Whether a shard serves or why not, without names of files: nobody has shown a token."""
    if shard.state is ServingState.SERVING:
        return shard.state
    if shard.state is ServingState.CORRUPT:
        return "stored data does not verify: an operator must look"
    return without_files(shard.detail) or shard.state


def routes(engine: Engine, auth: Authenticator) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["health"])
    states = States(engine)

    @router.get("/livez", summary="Does the gateway live", response_model=LiveResponse)
    async def livez() -> Response:
        """200 as long as the process answers."""
        return Response(b'{"live":true}', media_type="application/json")

    @router.get(
        "/readyz",
        summary="Can it take messages",
        response_model=ReadyResponse,
        responses={503: {"model": ReadyResponse, "description": "Some shard does not serve."}},
    )
    async def readyz() -> Response:
        """200 when every shard serves; 503 with the reasons otherwise. As of a second ago at most."""
        waiting = {shard: why for shard, why in (await states.get()).items() if why != ServingState.SERVING}
        content = {"ready": not waiting, "shards": waiting}
        return Response(orjson.dumps(content), 503 if waiting else 200, media_type="application/json")

    @router.get(
        "/v1/version",
        summary="Which imray is this",
        response_model=VersionResponse,
        responses=problems(401, 429, 500, 503),
    )
    async def version(request: Request) -> Response:
        """Version, data folder and number of shards."""
        auth.caller(request.headers.get("authorization"))
        manifest = engine.manifest
        content = {
            "name": "imray",
            "version": __version__,
            "cluster_id": manifest.cluster_id,
            "shards": manifest.shards,
        }
        return Response(orjson.dumps(content), media_type="application/json")

    @router.get(
        "/v1/status",
        summary="Figures of every shard",
        response_model=StatusResponse,
        responses=problems(401, 403, 429, 500, 503),
    )
    async def status(request: Request) -> Response:
        """For operators: state, epoch, segment, ids and bytes of each shard. Needs a token with the role `service`."""
        if not auth.caller(request.headers.get("authorization")).service:
            raise ProblemError(
                403, "forbidden", f"only a token with the role `service` may see the shards' figures; {SERVICE_HINT}"
            )
        shards = [shard.to_json() for shard in await engine.full_status()]
        return Response(orjson.dumps({"shards": shards}), media_type="application/json")

    return router
