"""CallChannel to whoever owns one log, wherever that is now.

Owns when to look up, to connect, and to do both again. Does not own retries: a call is sent once, and what its failure
means is its caller's business.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

from imray.core.errors import InvalidError
from imray.core.replies import Refusal, Refused
from imray.rpc.client import OnPush, RpcClient
from imray.rpc.directory import Directory
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.methods import Method

log = logging.getLogger("imray.rpc")

AnswerT = TypeVar("AnswerT")

_CONNECT_S_MAX = 2.0
"""A process that does not shake hands in this time is looked up anew: others wait for the attempt."""


class Channel:
    """Keeps one connection, for one event loop."""

    def __init__(
        self,
        directory: Directory,
        log: int,
        name: str,
        tls: ssl.SSLContext | None = None,
        on_push: OnPush | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """`name`: of the log's owner, for errors. `on_lost`: what the log's owner was asked to send unasked does not
        come any more, since a connection is gone or another has taken its place."""
        self._directory = directory
        self.log = log
        self.name = name
        self._tls = tls
        self._on_push = on_push
        self._on_lost = on_lost
        self._client: RpcClient | None = None
        self._endpoint: Endpoint | None = None
        self._look_up = True
        """The directory must be asked before the next call."""
        self._connecting = asyncio.Lock()
        self._attempts = 0
        self._failure: NoAnswerError | None = None
        """Of the last attempt to connect."""
        self._closed = False

    async def call(self, method: Method, content: Parts, timeout_s: float) -> memoryview:
        """The answer's content. Looks up and connects where that is needed; all within `timeout_s`.

        NoAnswerError: whether the call was executed is unknown; the next one looks up anew. The call is sent once at
        most."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        client = self._client
        if client is None or self._look_up or not client.open:
            client = await self._connected(deadline)
        try:
            return await client.call(self.log, method, content, deadline - loop.time())
        except NoAnswerError as e:
            if client is self._client:
                self.doubt()
            raise NoAnswerError(f"{self.name}: {e}") from e

    def close(self) -> None:
        """Close the connection; what waits, and what is called from now on, gets NoAnswerError."""
        self._closed = True
        if self._client is not None:
            self._client.close()

    def doubt(self) -> None:
        """Look up before the next call where the log's owner is: the connection stays where it is the same."""
        self._look_up = True
        self._directory.forget(self.log)

    async def _connected(self, deadline: float) -> RpcClient:
        """The kept connection, after at most one attempt to make it; whoever waited for an attempt shares its end."""
        seen = self._attempts
        try:
            async with asyncio.timeout_at(deadline), self._connecting:
                client = self._client
                if client is not None and client.open and not self._look_up:
                    return client
                if self._attempts != seen and self._failure is not None:
                    raise self._failure
                return await self._connect(deadline)
        except TimeoutError:
            raise NoAnswerError(f"{self.name}: no connection in time; the call was not sent") from None
        except NoAnswerError as e:
            raise NoAnswerError(f"{self.name}: {e}; the call was not sent") from e

    async def _connect(self, deadline: float) -> RpcClient:
        if self._closed:
            raise NoAnswerError("the channel is closed")
        loop = asyncio.get_running_loop()
        if self._client is not None and not self._client.open and not self._look_up:
            self.doubt()  # lost between two calls: what the directory remembers leads nowhere, most likely
        try:
            found = await self._directory.find(self.log, deadline - loop.time())
            client = self._client
            if client is None or not client.open or found != self._endpoint:
                timeout_s = min(deadline - loop.time(), _CONNECT_S_MAX)
                client = await RpcClient.connect(found, timeout_s, self._tls)
        except NoAnswerError as e:
            self._attempts += 1
            # a failure for want of this caller's time says nothing to those that have more
            self._failure = e if loop.time() < deadline else None
            self.doubt()
            raise
        if self._closed:
            client.close()
            raise NoAnswerError("the channel is closed")
        if self._client is not client:
            self._use(client)
        self._endpoint = found
        self._look_up = False
        self._failure = None
        return client

    def _use(self, client: RpcClient) -> None:
        """Another connection takes the place of the one before: whose pushes count from now on."""
        before = self._client
        self._client = client
        client.on_push = self._on_push
        client.on_gone = partial(self._gone, client)
        if before is not None:
            before.on_push = None
            before.on_gone = None
            before.retire()
            self._lost()

    def _gone(self, client: RpcClient) -> None:
        if client is self._client:
            self._lost()

    def _lost(self) -> None:
        if self._on_lost is not None:
            self._on_lost()


class CallChannel(Protocol):
    """What `answer_or_refusal` needs of a `Channel`."""

    name: str

    async def call(self, method: Method, content: Parts, timeout_s: float) -> memoryview:
        """As `Channel.call`."""


async def answer_or_refusal(
    channel: CallChannel, method: Method, content: Parts, decode: Callable[[memoryview], AnswerT], timeout_s: float
) -> AnswerT | Refusal:
    """One try, its answer decoded. UNAVAILABLE where there is none, or none that can be read: whether it was executed
    is unknown."""
    try:
        return decode(await channel.call(method, content, timeout_s))
    except NoAnswerError as e:
        return Refusal(Refused.UNAVAILABLE, str(e))
    except InvalidError as e:
        log.error("%s, %s: %s", channel.name, method.name, e)
        return Refusal(Refused.UNAVAILABLE, f"{channel.name}: its answer cannot be read: {e}")
