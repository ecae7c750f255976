"""A cold send, followed through the gateway and the shard: the architecture page names every file that it enters."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from api.app import create_app
from api.auth import make_token
from api.server import GatewayConfig, bind, server
from imray.engine.engine import Engine
from imray.log.manifest import create_or_open
from imray.log.store import LocalStore
from imray.rpc.endpoint import Endpoint
from imray.rpc.server import RpcServer
from imray.settings import Settings
from imray.shard.service import shard_handlers
from imray.shard.shard_writer import ShardWriter

_ROOT = Path(__file__).parents[2]
_KEY = b"k" * 32


class _OneProcess:
    """Every log is served here."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        return self._endpoint

    def forget(self, log: int) -> None:
        pass


class _Followed:
    """The product's files whose functions are called, in every thread that begins after this."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.on = False

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        if self.on and event == "call":
            file = Path(frame.f_code.co_filename)
            if file.is_relative_to(_ROOT) and file.relative_to(_ROOT).parts[0] in ("api", "imray"):
                self.files.add(file.relative_to(_ROOT).as_posix())


@asynccontextmanager
async def _system(folder: Path) -> AsyncIterator[str]:
    """A shard behind RPC, and a gateway: its URL."""
    settings = Settings()
    store = LocalStore(folder)
    manifest = create_or_open(store, 1)
    writer = ShardWriter(store, 0, manifest.seed, settings)
    await writer.start()
    rpc = RpcServer(settings.shard_queue_bytes_max)
    rpc.serve(0, shard_handlers(writer))
    key = folder / "key"
    key.write_bytes(_KEY)
    engine = Engine(_OneProcess(await rpc.open("127.0.0.1")), manifest, settings)
    app = create_app(engine, GatewayConfig("127.0.0.1", 0, {"key_file": str(key)}))
    listener = bind("127.0.0.1", 0)
    http = server(app, settings)
    serving = asyncio.create_task(http.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        http.should_exit = True
        await serving
        await rpc.close()
        await writer.stop()


async def test_the_architecture_page_names_every_file_that_a_send_enters(tmp_path: Path) -> None:
    followed = _Followed()
    threading.setprofile(followed)
    sys.setprofile(followed)
    try:
        async with _system(tmp_path) as url, httpx.AsyncClient() as client:
            token = make_token(_KEY, "ada", True, 60)
            body = {"client_msg_id": "0198c0de-0000-7000-8000-000000000001", "body": "hello"}
            followed.on = True
            answer = await client.post(
                f"{url}/v1/conversations/room/messages", json=body, headers={"authorization": f"Bearer {token}"}
            )
            followed.on = False
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    assert answer.status_code == 201
    page = (_ROOT / "docs" / "architecture.md").read_text()
    assert len(followed.files) > 20
    assert sorted(file for file in followed.files if file not in page) == []
