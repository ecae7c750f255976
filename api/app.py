"""The ASGI app: routes, errors, OpenAPI. Does not own the server that it runs in (`api.server`)."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from api import docs, events, groups, health, history, live_docs, members, messages
from api.auth import Authenticator, Caller
from api.door import RequestRouter, Strays
from api.limits import CALLING, Limits
from api.live_handshake import LiveDoor
from api.live_pages import LivePages
from api.live_wire import LiveEngine
from api.problems import ProblemError, on_problem, on_unexpected
from api.server import GatewayConfig
from api.turns import Pulls
from imray import __version__
from imray.engine.engine import Engine


def create_app(engine: Engine, config: GatewayConfig) -> RequestRouter:
    """The gateway over an engine. InvalidError where the config has no way to check tokens."""
    auth = _Identifying(config.auth, engine.settings)
    app = FastAPI(
        title="imray",
        version=__version__,
        summary="Message ordering for chat: durable, numbered, once.",
        description="Every message gets one number per conversation in the step that makes it durable, "
        "once per client_msg_id. All but health needs a bearer token. Errors are problem documents (RFC 9457); 405 "
        "names the methods that a path has in `Allow`. What comes live, by WebSocket and as Server-Sent Events: "
        "/docs/live. Any request may be refused with 408 (too slow), 414 (path too "
        "long), 429 or 503 (too much at once, see Retry-After) or 431 (headers too large): nothing was written.",
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.add_exception_handler(ProblemError, on_problem)
    app.add_exception_handler(Exception, on_unexpected)
    router, send = messages.routes(engine, auth)
    live = LiveEngine(engine, auth)
    pulls = Pulls(engine.manifest.shards, engine.settings)
    routers = [router, history.routes(engine, auth, pulls), groups.routes(engine, auth), health.routes(engine, auth)]
    routers += [members.routes(engine, auth), events.routes(live), live_docs.routes()]
    app.add_exception_handler(HTTPException, Strays(routers))
    for one in routers:
        app.include_router(one)
    docs.install(app, engine.settings)
    return RequestRouter(app, send, Limits(engine.settings), LiveDoor(live, LivePages(engine, pulls)))


class _Identifying(Authenticator):
    """Tells the connection's account who calls: that one pays for what the request holds."""

    def caller(self, authorization: str | None) -> Caller:
        caller = super().caller(authorization)
        account = CALLING.get()
        if account is not None:
            account.subject = caller.sender
        return caller
