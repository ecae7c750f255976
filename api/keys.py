"""Public keys of an identity provider (RFC 7517): which key may verify which token, and how the keys come here.

They are fetched beside everything else, so that a provider that hangs holds nobody up: old keys serve meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jwt

from api.problems import ProblemError
from imray.core.errors import InvalidError
from imray.settings import Settings

log = logging.getLogger("imray.keys")

_DOCUMENT_BYTES_MAX = 1024 * 1024
_KEYS_MAX = 1000
_ALGORITHMS: dict[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""By kty and crv. No symmetric ones: a public document holds no secret."""
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class Keys(Protocol):
    """Where keys come from."""

    def find(self, kid: str | None, algorithm: str) -> Any:
        """The key for a token's header. `jwt.InvalidTokenError` where there is none, ProblemError 503 where that
        cannot be said now."""


class KeySet:
    """The keys of one document, by `kid` and algorithm: each verifies with its own algorithms only, and only if it is
    there for signatures (`use`, `key_ops`, `alg`). InvalidError where none is of use."""

    def __init__(self, document: object) -> None:
        listed = document.get("keys") if isinstance(document, dict) else None
        if not isinstance(listed, list):
            raise InvalidError("it is no JWKS: an object with a list `keys`")
        self._keys: dict[tuple[str | None, str], Any] = {}
        for entry in listed[:_KEYS_MAX]:
            for algorithm in _algorithms(entry):
                try:
                    key = jwt.PyJWK({k: v for k, v in entry.items() if k not in _PRIVATE}, algorithm).key
                except (jwt.PyJWTError, ValueError, TypeError) as e:
                    log.warning("a key of the JWKS is of no use: %s", e)
                    break
                self._keys.setdefault((entry.get("kid"), algorithm), key)
        self._kids = {kid for kid, _ in self._keys}
        if not self._keys:
            raise InvalidError("the JWKS has no key that can verify signatures")

    def knows(self, kid: str | None) -> bool:
        """Whether there is such a key, for whatever algorithm."""
        return kid in self._kids

    def find(self, kid: str | None, algorithm: str) -> Any:
        """See `Keys.find`."""
        if not self.knows(kid):
            raise jwt.InvalidTokenError(f"no key {kid!r} in the JWKS")
        if (kid, algorithm) not in self._keys:
            raise jwt.InvalidTokenError(f"the key {kid!r} is not for {algorithm!r}")
        return self._keys[kid, algorithm]


def _algorithms(entry: object) -> tuple[str, ...]:
    """What an entry of a JWKS may verify; nothing for one that is no public key for signatures."""
    if not isinstance(entry, dict) or not isinstance(entry.get("kid"), str | None):
        return ()
    kind = entry.get("kty")
    curve = entry.get("crv") if kind in ("EC", "OKP") else None
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return ()
    operations = entry.get("key_ops")
    if entry.get("use") not in (None, "sig") or (isinstance(operations, list) and "verify" not in operations):
        return ()
    named = entry.get("alg")
    return tuple(a for a in _ALGORITHMS.get((kind, curve), ()) if named in (None, a))


def read_keys(path: Path) -> KeySet:
    """The keys in a file."""
    try:
        return KeySet(json.loads(path.read_bytes()))
    except (OSError, ValueError, InvalidError) as e:
        raise InvalidError(f"the JWKS {path} cannot be used: {e}") from e


class RemoteKeys:
    """The keys behind a URL, as they were fetched last. `find` never waits."""

    def __init__(
        self,
        url: str,
        settings: Settings,
        clock_s: Callable[[], float] = time.monotonic,
        get: Callable[[str, float], bytes] | None = None,
    ) -> None:
        if not url.startswith(("https://", "http://")):
            raise InvalidError(f"IMRAY_JWKS={url}: a URL with https or http, or the path of a file")
        self._url = url
        self._settings = settings
        self._clock_s = clock_s
        self._get = get or fetch
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._fetched_s = 0.0
        self._tried_s: float | None = None
        self.fetching: threading.Thread | None = None
        """The fetch that is on its way."""
        self._refresh()

    def find(self, kid: str | None, algorithm: str) -> Any:
        """See `Keys.find`."""
        keys = self._keys
        if keys is None:
            self._refresh()
            raise ProblemError(503, "busy", "the identity provider's keys are not here yet: retry later", 1.0)
        if self._clock_s() - self._fetched_s > self._settings.jwks_lifespan_s:
            self._refresh()
        if not keys.knows(kid) and self._refresh():
            raise ProblemError(503, "busy", "the token's key is new here, the keys are fetched anew: retry later", 1.0)
        return keys.find(kid, algorithm)

    def _refresh(self) -> bool:
        """Fetch in a thread, unless that happened a moment ago; whether a fetch is on its way."""
        with self._lock:
            if self.fetching is not None:
                return True
            now_s = self._clock_s()
            if self._tried_s is not None and now_s - self._tried_s < self._settings.jwks_refresh_s_min:
                return False
            self._tried_s = now_s
            self.fetching = threading.Thread(target=self._fetch, name="jwks", daemon=True)
            self.fetching.start()
            return True

    def _fetch(self) -> None:
        try:
            keys = KeySet(json.loads(self._get(self._url, self._settings.jwks_timeout_s)))
        except Exception:
            # whatever it is, the old keys serve on, and the next token that needs it tries again
            log.warning("the keys at %s cannot be fetched", self._url, exc_info=True)
        else:
            self._keys = keys
            self._fetched_s = self._clock_s()
        finally:
            with self._lock:
                self.fetching = None


def fetch(url: str, timeout_s: float) -> bytes:
    """What stands at a URL, within `timeout_s` for all of it, and not more than a key set may have. No redirects."""
    return asyncio.run(_fetch(url, timeout_s))


async def _fetch(url: str, timeout_s: float) -> bytes:
    import httpx

    # the system's certificates, not those of a package: an operator's own authority counts
    trusted = ssl.create_default_context()
    async with (
        asyncio.timeout(timeout_s),
        httpx.AsyncClient(verify=trusted) as client,
        client.stream("GET", url, timeout=timeout_s) as answer,
    ):
        if answer.status_code != 200:
            raise InvalidError(f"status {answer.status_code}")
        data = bytearray()
        async for chunk in answer.aiter_bytes():
            data += chunk
            if len(data) > _DOCUMENT_BYTES_MAX:
                raise InvalidError(f"more than {_DOCUMENT_BYTES_MAX} bytes")
        return bytes(data)
