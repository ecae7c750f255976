"""Who calls: bearer JWTs (RFC 7519), by a shared key (HS256) or a JWKS. `sub` is the sender."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt

from api.problems import ProblemError
from imray.core.errors import InvalidError
from imray.core.routing import check_text

SENDER_BYTES_MAX = 128
_KEY_BYTES_MIN = 32
_CACHE_TOKENS_MAX = 10_000
_CACHE_S_MAX = 60.0
"""A verified token is believed for so long without a new look at its signature: a key taken away counts after that."""
_LEEWAY_S = 10
_JWKS_ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "EdDSA"]
_HELP = "send 'Authorization: Bearer <token>'; `imray token` makes one for development"


@dataclass(frozen=True)
class Caller:
    """Who a valid token speaks for."""

    sender: str
    service: bool
    """May name the sender of each message."""


class Authenticator:
    """Checks tokens. Config (see `imray.cluster.gateway.GatewayConfig.auth`): `key_file` (HS256) or `jwks` (a URL or
    a file), and optionally `issuer` and `audience`, which tokens must then name."""

    def __init__(self, config: Mapping[str, str], clock_s: Callable[[], float] = time.time) -> None:
        self._clock_s = clock_s
        self._issuer, self._audience = config.get("issuer"), config.get("audience")
        self._cache: OrderedDict[str, tuple[Caller, float]] = OrderedDict()
        self._key_of: Callable[[str], Any]
        if jwks := config.get("jwks"):
            self._algorithms = _JWKS_ALGORITHMS
            self._key_of = _jwks_url(jwks) if "://" in jwks else _jwks_file(Path(jwks))
        elif key_file := config.get("key_file"):
            key = Path(key_file).read_bytes().strip()
            if len(key) < _KEY_BYTES_MIN:
                raise InvalidError(f"the key in {key_file} has {len(key)} bytes: HS256 needs {_KEY_BYTES_MIN}")
            self._algorithms = ["HS256"]
            self._key_of = lambda _token: key
        else:
            raise InvalidError("no way to check tokens: set IMRAY_JWT_KEY_FILE or IMRAY_JWKS")

    def caller(self, authorization: str | None) -> Caller:
        """The caller behind an Authorization header; ProblemError 401 where there is none."""
        if authorization is None:
            raise ProblemError(401, "unauthenticated", f"no token: {_HELP}")
        known = self._cache.get(authorization)
        if known is not None and known[1] > self._clock_s():
            return known[0]
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise ProblemError(401, "unauthenticated", f"no bearer token: {_HELP}")
        try:
            claims = jwt.decode(
                token.strip(),
                self._key_of(token.strip()),
                algorithms=self._algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_S,
                options={"require": ["sub", "exp"]},
            )
            check_text(claims["sub"], "sub", SENDER_BYTES_MAX)
        except (jwt.PyJWTError, InvalidError, ValueError) as e:
            raise ProblemError(401, "unauthenticated", f"the token is not valid ({e}): {_HELP}") from e
        caller = Caller(claims["sub"], claims.get("role") == "service" or "service" in _roles(claims))
        until = min(float(claims["exp"]), self._clock_s() + _CACHE_S_MAX)
        self._cache[authorization] = (caller, until)
        if len(self._cache) > _CACHE_TOKENS_MAX:
            self._cache.popitem(last=False)
        return caller


def _roles(claims: Mapping[str, Any]) -> list[Any]:
    roles = claims.get("roles", [])
    return roles if isinstance(roles, list) else []


def _jwks_url(url: str) -> Callable[[str], Any]:
    client = jwt.PyJWKClient(url, cache_keys=True, timeout=5)
    return lambda token: client.get_signing_key_from_jwt(token).key


def _jwks_file(path: Path) -> Callable[[str], Any]:
    keys = {k.key_id: k.key for k in jwt.PyJWKSet.from_json(path.read_text()).keys}

    def key_of(token: str) -> Any:
        kid = jwt.get_unverified_header(token).get("kid")
        if kid not in keys:
            raise jwt.InvalidTokenError(f"no key {kid!r} in the JWKS")
        return keys[kid]

    return key_of


def make_token(key: bytes, sender: str, service: bool, lifetime_s: float, now_s: float | None = None) -> str:
    """A token for development, signed with the shared key (HS256)."""
    now = time.time() if now_s is None else now_s
    claims: dict[str, Any] = {"sub": sender, "iat": int(now), "exp": int(now + lifetime_s)}
    if service:
        claims["role"] = "service"
    return jwt.encode(claims, key, algorithm="HS256")
