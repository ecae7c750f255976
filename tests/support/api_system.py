"""The app over an engine that answers as a test says, without Ray: what the tests of the API's bounds share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from analytics.history import MESSAGES_SCHEMA
from api.app import create_app
from api.auth import make_token
from api.server import GatewayConfig
from imray.core.pages import Page, PageAsk
from imray.core.replies import Appended, Located, Refusal
from imray.core.routing import shard_of
from imray.core.status import ServingState, ShardStatus
from imray.engine.batcher import SendAnswer
from imray.engine.sends import Send
from imray.settings import Settings
from tests.support.fake_members import FakeMembers

KEY = b"k" * 32


class FakeBackend:
    """One shard that takes everything, and pages that all look alike. One page is read at a time, as in the reader."""

    def __init__(self, settings: Settings, page: pa.Table | None = None) -> None:
        self.settings = settings
        self.manifest = SimpleNamespace(shards=1, cluster_id="test")
        self.page = page if page is not None else page_of([b"x"] * 3)
        self.asked = 0
        self.was_asked = asyncio.Event()
        self.answers = asyncio.Event()
        """Status is not answered before."""
        self.answers.set()
        self.states = [(ServingState.SERVING, "")]
        """Of each shard, and why it does not serve."""
        self.members = FakeMembers()
        self.refusal: Refusal | None = None
        self.read: list[str] = []
        """Conversations, as their pages were read."""
        self.was_read = asyncio.Event()
        self.fault: Exception | None = None
        self._reader = asyncio.Lock()

    def shard_of(self, conv_id: str) -> int:
        return shard_of(conv_id, 1)

    def ways(self, batch: pa.RecordBatch) -> np.ndarray:
        return np.zeros(len(batch.column("conv_id").dictionary), np.int64)

    async def send(self, send: Send) -> SendAnswer:
        if self.fault is not None:
            raise self.fault
        return SendAnswer(self.refusal or appended(1), 0)

    async def send_batches(self, batches: dict[int, pa.RecordBatch]) -> dict[int, Appended | Refusal]:
        return {log: self.refusal or appended(b.num_rows) for log, b in batches.items()}

    async def status(self) -> list[ShardStatus]:
        self.asked += 1
        self.was_asked.set()
        await self.answers.wait()
        return [ShardStatus(i, state, why, 0, [], pid=7) for i, (state, why) in enumerate(self.states)]

    async def full_status(self) -> list[ShardStatus]:
        return await self.status()

    async def head(self, conv_id: str) -> Located | Refusal:
        if self.fault is not None:
            raise self.fault
        return self.refusal or located()

    async def history(self, ask: PageAsk) -> tuple[Located, Page[pa.Table]] | Refusal:
        async with self._reader:
            await asyncio.sleep(0)
            self.read.append(ask.conv_id)
            self.was_read.set()
        if self.refusal is not None:
            return self.refusal
        return located(), Page(self.page, [], 1, self.page.num_rows, None)


def appended(rows: int) -> Appended:
    """All of them new."""
    return Appended(rows, 1, 0, 1, 0, 1, rows, None)


def located() -> Located:
    """Three messages."""
    return Located(3, 3, 1, 0, [], [])


def page_of(bodies: list[bytes]) -> pa.Table:
    """A page of messages with these bodies."""
    rows = len(bodies)
    stamps = pa.array(np.arange(rows), pa.int64()).cast(MESSAGES_SCHEMA.field("server_ts").type)
    columns = {
        "conv_seq": pa.array(np.arange(1, rows + 1)),
        "client_msg_id": pa.array([i.to_bytes(16, "big") for i in range(rows)], pa.binary(16)),
        "sender": pa.array(["ada"] * rows),
        "topic": pa.nulls(rows, pa.string()),
        "content_type": pa.nulls(rows, pa.string()),
        "client_ts": stamps,
        "server_ts": stamps,
        "body": pa.array(bodies, pa.binary()),
    }
    return pa.table(columns, schema=MESSAGES_SCHEMA)


def app_over(engine: FakeBackend, folder: Path, **auth: str) -> Any:
    """The app, with tokens of KEY."""
    (folder / "key").write_bytes(KEY)
    config = GatewayConfig("127.0.0.1", 0, auth or {"key_file": str(folder / "key")})
    return create_app(engine, config)  # type: ignore[arg-type]


def bearer(sender: str, service: bool = False) -> dict[str, str]:
    """Headers of a caller."""
    return {"Authorization": f"Bearer {make_token(KEY, sender, service, 600)}"}


def client_of(app: Any) -> httpx.AsyncClient:
    """A client inside this process."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")
