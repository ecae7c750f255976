"""A server in memory that keeps the HTTP contract, and breaks it where a test says so."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any
from urllib.parse import parse_qs, unquote

import orjson
import uvicorn

LOSE_ANSWER, HANG = "store, then cut the answer", "store, then never answer"


class FakeImray:
    """Stores in memory. `script` holds what happens to the next requests: LOSE_ANSWER, HANG, or an answer."""

    def __init__(self) -> None:
        self.script: deque[Any] = deque()
        self.batch_statuses: deque[list[int]] = deque()
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        self.stored: dict[str, list[dict[str, Any]]] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        raw_path = scope["raw_path"].decode()
        headers = {k.decode(): v.decode() for k, v in scope["headers"]}
        content = orjson.loads(body) if body else parse_qs(scope["query_string"].decode())
        self.requests.append((scope["method"], raw_path, headers, content))
        fault = self.script.popleft() if self.script else None
        if isinstance(fault, tuple):
            await self.answer(send, *fault)
            return
        status, answer = self.handle(scope["method"], raw_path, content)
        if fault == HANG:
            assert (await receive())["type"] == "http.disconnect"
        elif fault == LOSE_ANSWER:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
            await send({"type": "http.response.body", "body": b"{"})
        else:
            await self.answer(send, status, answer)

    @staticmethod
    async def answer(send: Any, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        given = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
        given.append((b"content-length", str(len(content)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": given})
        await send({"type": "http.response.body", "body": content})

    def handle(self, method: str, raw_path: str, content: Any) -> tuple[int, Any]:
        parts = [unquote(p) for p in raw_path.strip("/").split("/")]
        match method, parts:
            case "POST", ["v1", "conversations", conv_id, "messages"]:
                return self.store(conv_id, content)
            case "POST", ["v1", "messages:batch"]:
                return 200, {
                    "results": self.batch(content["messages"]),
                    "created": 0,
                    "duplicates": 0,
                    "failed": 0,
                }
            case "GET", ["v1", "conversations", conv_id, "messages"]:
                return 200, self.history(conv_id, {k: v[0] for k, v in content.items()})
            case "GET", ["v1", "conversations", conv_id]:
                n = len(self.stored.get(conv_id, []))
                return 200, {"conv_id": conv_id, "conv_seq": n, "stable_seq": n, "epoch": 1, "shard": 7}
            case "GET", ["v1", "version"]:
                return 200, {"name": "imray", "version": "9", "cluster_id": "c", "shards": 8, "new": "field"}
            case "GET", ["readyz"]:
                return 503, {"ready": False, "shards": {"3": "recovering"}}
        return 404, {"detail": "no such path"}

    def store(self, conv_id: str, message: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        stored = self.stored.setdefault(conv_id, [])
        msg_id = message["client_msg_id"]
        first = next((m for m in stored if m["client_msg_id"] == msg_id), None)
        if first is not None and first["body"] != message["body"]:
            return 409, {"detail": "the id was used with another payload", "conv_seq": first["conv_seq"]}
        if first is None:
            first = {"sender": "me", "server_ts": 5} | message | {"conv_seq": len(stored) + 1}
            stored.append(first)
        seq, duplicate = first["conv_seq"], stored[-1] is not first or len(self.requests) > 1
        offset = {"shard": 7, "segment": seq, "row": 0}
        numbers = {"conv_seq": seq, "epoch": 1, "offset": offset, "server_ts": 5, "stable_seq": seq}
        names = {"conv_id": conv_id, "client_msg_id": msg_id, "duplicate": duplicate}
        return 200 if duplicate else 201, names | numbers

    def batch(self, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        statuses = self.batch_statuses.popleft() if self.batch_statuses else [201] * len(messages)
        results = []
        for message, status in zip(messages, statuses, strict=True):
            named = {k: message[k] for k in ("conv_id", "client_msg_id")}
            fields = {k: v for k, v in message.items() if k != "conv_id"}
            if status == 201:
                _, answer = self.store(message["conv_id"], fields)
                results.append(answer | {"status": 201})
            else:
                results.append(named | {"status": status, "detail": "later"})
        return results

    def history(self, conv_id: str, params: dict[str, str]) -> dict[str, Any]:
        after, before, limit = int(params["after"]), int(params.get("before", 10**9)), int(params["limit"])
        descending = params["order"] == "desc"
        found = [m for m in self.stored.get(conv_id, []) if after < m["conv_seq"] < before]
        found = found[::-1] if descending else found
        cut = found[limit - 1]["conv_seq"] if len(found) > limit else None
        n = len(self.stored.get(conv_id, []))
        return {
            "conv_id": conv_id,
            "messages": found[:limit],
            "holes": [{"from": 90, "to": 91, "reason": "lost grant"}],
            "stable_seq": n,
            "epoch": 1,
            "next": cut,
        }


class Server(uvicorn.Server):
    def __init__(self, app: FakeImray) -> None:
        super().__init__(uvicorn.Config(app, port=0, ws="none", lifespan="off", log_level="critical"))
        self.up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()
