"""Is it alive, is it ready, which version is it. Health needs no token."""

from __future__ import annotations

import orjson
from fastapi import APIRouter, Request, Response

from api.auth import Authenticator
from api.docs import problems
from api.schemas import LiveResponse, ReadyResponse, StatusResponse, VersionResponse
from imray import __version__
from imray.cluster.backend import Backend


def routes(backend: Backend, auth: Authenticator) -> APIRouter:
    """The routes of this module."""
    router = APIRouter(tags=["health"])

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
        """200 when every shard serves; 503 with the reasons otherwise."""
        states = {str(s["shard"]): str(s["state"]) for s in await backend.status()}
        waiting = {shard: state for shard, state in states.items() if state != "serving"}
        content = {"ready": not waiting, "shards": waiting}
        return Response(orjson.dumps(content), 503 if waiting else 200, media_type="application/json")

    @router.get("/v1/version", summary="Which imray is this", response_model=VersionResponse, responses=problems(401))
    async def version(request: Request) -> Response:
        """Version, data folder and number of shards."""
        auth.caller(request.headers.get("authorization"))
        manifest = backend.manifest
        content = {
            "name": "imray",
            "version": __version__,
            "cluster_id": manifest.cluster_id,
            "shards": manifest.shards,
        }
        return Response(orjson.dumps(content), media_type="application/json")

    @router.get("/v1/status", summary="Figures of every shard", response_model=StatusResponse, responses=problems(401))
    async def status(request: Request) -> Response:
        """For operators: state, epoch, segment, ids and bytes of each shard."""
        auth.caller(request.headers.get("authorization"))
        return Response(orjson.dumps({"shards": await backend.status()}), media_type="application/json")

    return router
