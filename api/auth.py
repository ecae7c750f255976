"""Who calls: bearer JWTs (RFC 7519), by a shared key (HS256) or a JWKS. `sub` is the sender."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt

from api.keys import Keys, RemoteKeys, read_keys
from api.problems import ProblemError
from api.rates import Rates
from imray.core.errors import InvalidError
from imray.core.routing import check_text
from imray.settings import Settings

log = logging.getLogger("imray.auth")

SENDER_BYTES_MAX = 128
_KEY_BYTES_MIN = 32
_CACHE_TOKENS_MAX = 10_000
_CACHE_S_MAX = 60.0
"""A verified token is believed for so long without a new look at its signature: a key taken away counts after that."""
_LEEWAY_S = 10
_EXP_MAX = 2**53
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters and marks of direction: a name with them can look like another's."""
_BAD_TOKEN = (jwt.PyJWTError, InvalidError, ValueError, TypeError, ArithmeticError, LookupError, RecursionError)
"""What a token of strange make raises on its way through the decoder: numbers past every range, nests without end."""
_SAID_MAX = 200
_HELP = "send 'Authorization: Bearer <token>'; `imray token` makes one for development"


@dataclass(frozen=True)
class Caller:
    """Who a valid token speaks for."""

    sender: str
    service: bool
    """May name the sender of each message."""
    expires_at_s: float = field(default=math.inf, compare=False)
    """When the token is not taken any more."""


class Authenticator:
    """Checks tokens. Config (see `imray.deploy.gateway.GatewayConfig.auth`): `key_file` (HS256) or `jwks` (a URL or
    a file), and optionally `issuer` and `audience`, which tokens must then name."""

    def __init__(
        self,
        config: Mapping[str, str],
        settings: Settings | None = None,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        settings = settings or Settings()
        self.rates = Rates(settings)
        self._clock_s = clock_s
        self._issuer = config.get("issuer")
        self._audience = config.get("audience")
        self._cache: OrderedDict[bytes, tuple[Caller, float]] = OrderedDict()
        self._keys: Keys = _keys(config, settings)
        if not config.get("development"):
            self._warn()

    def _warn(self) -> None:
        if self._issuer is None:
            log.warning(
                "IMRAY_JWT_ISSUER is not set: every token that the key verifies is taken, whoever it was made for; "
                "where the key signs for other services, too, their tokens open this one"
            )
        if self._audience is None:
            log.warning(
                "IMRAY_JWT_AUDIENCE is not set: tokens that name an audience are refused, and any other is taken"
            )

    def caller(self, authorization: str | None) -> Caller:
        """The caller behind an Authorization header, which makes one more request: ProblemError 429 where it asks too
        often, and as `verify`."""
        caller = self.verify(authorization)
        self.rates.request(caller.sender, caller.service)
        return caller

    def verify(self, authorization: str | None) -> Caller:
        """The caller behind an Authorization header: ProblemError 401 where there is none, 503 where the keys to check
        it are not here."""
        if authorization is None:
            raise ProblemError(401, "unauthenticated", f"no token: {_HELP}")
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise ProblemError(401, "unauthenticated", f"no bearer token: {_HELP}")
        # a digest: of a token of 60 KB the cache holds no more than of any other
        name = hashlib.sha256(token.encode()).digest()
        known = self._cache.get(name)
        return known[0] if known is not None and known[1] > self._clock_s() else self._verify(name, token)

    def seconds_left(self, caller: Caller) -> float:
        """How long the caller's token is still taken."""
        return caller.expires_at_s - self._clock_s()

    def _verify(self, name: bytes, token: str) -> Caller:
        try:
            header = jwt.get_unverified_header(token)
            algorithm = header["alg"]
            claims = jwt.decode(
                token,
                self._keys.find(header.get("kid"), algorithm),
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_S,
                options={"require": ["sub", "exp"]},
            )
            exp_s = _exp_s(claims["exp"])
            caller = _caller(claims, exp_s + _LEEWAY_S)
        except _BAD_TOKEN as e:
            # a token may hold anything, and errors repeat parts of it
            said = str(e)[:_SAID_MAX].encode(errors="backslashreplace").decode()
            raise ProblemError(401, "unauthenticated", f"the token is not valid ({said}): {_HELP}") from e
        self._cache[name] = (caller, min(exp_s, self._clock_s() + _CACHE_S_MAX))
        if len(self._cache) > _CACHE_TOKENS_MAX:
            self._cache.popitem(last=False)
        return caller


def check_seen(name: str, what: str) -> None:
    """InvalidError where a name holds what is not seen, and can look like another's."""
    if _UNSEEN.search(name):
        raise InvalidError(f"{what} holds a control character or a mark of direction")


def _caller(claims: Mapping[str, Any], expires_at_s: float) -> Caller:
    sender = claims["sub"]
    check_text(sender, "sub", SENDER_BYTES_MAX)
    check_seen(sender, "sub")
    return Caller(sender, claims.get("role") == "service" or "service" in _roles(claims), expires_at_s)


def _exp_s(exp: object) -> float:
    """A time in seconds; a number that is none would pass as "never"."""
    if isinstance(exp, bool) or not isinstance(exp, int | float) or not 0 <= exp <= _EXP_MAX:
        raise InvalidError("exp is not a time in seconds")
    return float(exp)


def _roles(claims: Mapping[str, Any]) -> list[Any]:
    roles = claims.get("roles", [])
    return roles if isinstance(roles, list) else []


class _SharedKey:
    """One key for all tokens (HS256)."""

    def __init__(self, path: Path) -> None:
        self._key = path.read_bytes().strip()
        if len(self._key) < _KEY_BYTES_MIN:
            raise InvalidError(f"the key in {path} has {len(self._key)} bytes: HS256 needs {_KEY_BYTES_MIN}")

    def find(self, kid: str | None, algorithm: str) -> Any:
        """See `api.keys.Keys.find`."""
        if algorithm != "HS256":
            raise jwt.InvalidAlgorithmError("the algorithm is not HS256")
        return self._key


def _keys(config: Mapping[str, str], settings: Settings) -> Keys:
    if jwks := config.get("jwks"):
        return RemoteKeys(jwks, settings) if "://" in jwks else read_keys(Path(jwks))
    if key_file := config.get("key_file"):
        return _SharedKey(Path(key_file))
    raise InvalidError("no way to check tokens: set IMRAY_JWT_KEY_FILE or IMRAY_JWKS")


def make_token(key: bytes, sender: str, service: bool, lifetime_s: float, now_s: float | None = None) -> str:
    """A token for development, signed with the shared key (HS256)."""
    now = time.time() if now_s is None else now_s
    claims: dict[str, Any] = {"sub": sender, "iat": int(now), "exp": int(now + lifetime_s)}
    if service:
        claims["role"] = "service"
    return jwt.encode(claims, key, algorithm="HS256")
