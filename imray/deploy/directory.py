"""Where each log is served, asked of Ray: a log's number leads to an actor's name, and the actor says where it listens.

Owns what is remembered of that, until it is forgotten. Does not own connections (`imray.rpc.channel`).
"""

from __future__ import annotations

import asyncio

import ray
from ray.exceptions import RayError, RayTaskError

from imray.deploy import names
from imray.rpc.endpoint import Endpoint, NoAnswerError


class RayDirectory:
    """The `imray.rpc.directory.Directory` of one deployment. Belongs to one event loop."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._known: dict[int, Endpoint] = {}

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        """Where the actor of a log listens. NoAnswerError where there is no such actor (yet), or it does not say."""
        known = self._known.get(log)
        if known is not None:
            return known
        name = names.of_log(log)
        try:
            # by its name each time: a handle may stand for an actor that is dead, while the name has a new one
            # in a thread: while Ray's own store is slow it would hold up everybody
            async with asyncio.timeout(timeout_s):
                actor = await asyncio.to_thread(ray.get_actor, name, self._namespace)
                found: Endpoint = await actor.endpoint.remote()
        except TimeoutError:
            raise NoAnswerError(f"{name} did not say within {timeout_s:.1f} s where it listens") from None
        except (RayError, ValueError) as e:  # ValueError: nobody has the name
            cause = e.cause if isinstance(e, RayTaskError) else e
            raise NoAnswerError(f"{name}: {(str(cause).strip() or type(cause).__name__).splitlines()[0]}") from e
        self._known[log] = found
        return found

    def forget(self, log: int) -> None:
        """Ask again at the next `find`: what was found did not answer, or has a successor."""
        self._known.pop(log, None)
