"""Tokens of strange make, keys for other purposes, and an identity provider that is not there."""

from __future__ import annotations

import base64
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from api.auth import Authenticator, Caller
from api.keys import KeySet, RemoteKeys, fetch
from api.problems import ProblemError
from imray.core.errors import InvalidError
from imray.settings import Settings

KEY = b"k" * 32
_WAIT_S = 10.0
_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
_EC = ec.generate_private_key(ec.SECP256R1())


def rsa_jwk(**more: Any) -> dict[str, Any]:
    return json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(_RSA.public_key())) | more


def ec_jwk(**more: Any) -> dict[str, Any]:
    return json.loads(jwt.algorithms.ECAlgorithm.to_jwk(_EC.public_key())) | more


def signed(claims: bytes | dict[str, Any], header: dict[str, Any] | None = None) -> str:
    """A token of KEY whose claims may be anything."""
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return "Bearer " + jwt.api_jws.encode(payload, KEY, "HS256", headers=header)


def part(data: bytes) -> str:
    """Of a token."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def by_rsa(kid: str = "one", algorithm: str = "RS256") -> str:
    claims = {"sub": "ada", "exp": time.time() + 60}
    return "Bearer " + jwt.encode(claims, _RSA, algorithm, headers={"kid": kid})


@pytest.fixture
def auth(tmp_path: Path) -> Authenticator:
    (tmp_path / "key").write_bytes(KEY)
    return Authenticator({"key_file": str(tmp_path / "key")})


def keys_in(folder: Path, *keys: object) -> Authenticator:
    (folder / "jwks.json").write_text(json.dumps({"keys": keys}))
    return Authenticator({"jwks": str(folder / "jwks.json")})


def status_of(auth: Authenticator, authorization: str) -> int:
    with pytest.raises(ProblemError) as refused:
        auth.caller(authorization)
    assert json.loads(refused.value.response().body)["status"] == refused.value.status
    return refused.value.status


@pytest.mark.parametrize(
    "exp",
    ["1" + "0" * 400, "1e400", "-1e400", "NaN", "Infinity", "true", '"tomorrow"', "[1]", "{}", "null", "1" * 5000],
)
def test_a_time_that_is_none_is_refused(auth: Authenticator, exp: str) -> None:
    assert status_of(auth, signed(b'{"sub":"ada","exp":%s}' % exp.encode())) == 401


@pytest.mark.parametrize("claim", ["iat", "nbf"])
@pytest.mark.parametrize("value", ["1" + "0" * 400, "1e400", "NaN", "[1]"])
def test_other_times_that_are_none_are_refused(auth: Authenticator, claim: str, value: str) -> None:
    claims = f'{{"sub":"ada","exp":{int(time.time()) + 60},"{claim}":{value}}}'
    try:
        auth.caller(signed(claims.encode()))
    except ProblemError as e:
        assert e.status == 401  # noqa: PT017 a long past `iat` is none of our business


@pytest.mark.parametrize(
    "sub",
    ["a\x00b", "a\nb", "a\x7fb", "a\x85b", "a\u202eb", "a\u2066b", "\u200fa", "a\u2028b", "\ud800", "", "x" * 129, 7],
)
def test_a_name_that_can_look_like_another_is_refused(auth: Authenticator, sub: Any) -> None:
    assert status_of(auth, signed({"sub": sub, "exp": time.time() + 60})) == 401


def test_names_of_all_scripts_are_taken(auth: Authenticator) -> None:
    for sub in ("ädä", "עדה", "عادة", "阿达", "😀"):
        assert auth.caller(signed({"sub": sub, "exp": time.time() + 60})).sender == sub


def test_headers_and_claims_without_end_are_refused(auth: Authenticator) -> None:
    deep = b"[" * 30_000
    made = [
        (deep, b"{}"),
        (b'{"alg":' + deep, b"{}"),
        (b'{"alg":7}', b"{}"),
        (b'{"alg":["HS256"]}', b"{}"),
        (b'{"alg":{}}', b"{}"),
        (b"[]", b"{}"),
        (b'{"alg":"HS256","kid":{}}', b"{}"),
        (b'{"alg":"none"}', b'{"sub":"eve","exp":9999999999}'),
    ]
    tokens = [f"Bearer {part(header)}.{part(claims)}.{part(b'x')}" for header, claims in made]
    tokens += [signed(deep), signed(b"7"), signed(b"null"), "Bearer \u00ff\u00fe", "Bearer .."]
    assert [status_of(auth, token) for token in tokens] == [401] * len(tokens)


def test_a_key_is_used_with_its_own_algorithm_only(tmp_path: Path) -> None:
    auth = keys_in(tmp_path, rsa_jwk(kid="one"), ec_jwk(kid="two"), {"kty": "oct", "k": "AAAA", "kid": "three"}, 7)
    assert auth.caller(by_rsa()) == Caller("ada", False)
    claims = {"sub": "ada", "exp": time.time() + 60}
    by_ec = jwt.encode(claims, _EC, "ES256", headers={"kid": "two"})
    assert auth.caller(f"Bearer {by_ec}") == Caller("ada", False)
    crossed = [
        jwt.encode(claims, _EC, "ES256", headers={"kid": "one"}),
        jwt.encode(claims, _RSA, "RS256", headers={"kid": "two"}),
        jwt.encode(claims, b"\x00" * 32, "HS256", headers={"kid": "three"}),
        jwt.encode(claims, b"\x00" * 32, "HS256", headers={"kid": "one"}),
    ]
    assert [status_of(auth, f"Bearer {token}") for token in crossed] == [401] * 4


def test_use_and_alg_of_keys_are_honoured(tmp_path: Path) -> None:
    assert status_of(keys_in(tmp_path, rsa_jwk(kid="one", alg="RS512")), by_rsa()) == 401
    for ours in ({"alg": "RS256"}, {"use": "sig"}, {"key_ops": ["verify"]}):
        assert keys_in(tmp_path, rsa_jwk(kid="one") | ours).caller(by_rsa()).sender == "ada"
    other = ec_jwk(kid="two")
    for theirs in ({"use": "enc"}, {"key_ops": ["encrypt"]}, {"alg": "RSA-OAEP"}, {"alg": 7}, {"kid": [1]}):
        jwk = {k: v for k, v in rsa_jwk(kid="one").items() if k != "key_ops"} | theirs
        assert status_of(keys_in(tmp_path, jwk, other), by_rsa()) == 401


def test_two_kinds_of_key_may_have_one_name(tmp_path: Path) -> None:
    auth = keys_in(tmp_path, ec_jwk(kid="one"), rsa_jwk(kid="one"))
    assert auth.caller(by_rsa()).sender == "ada"


@pytest.mark.parametrize("document", [[], {}, {"keys": 7}, {"keys": []}, {"keys": [{"kty": "RSA"}, None]}])
def test_a_document_without_keys_is_refused(document: object) -> None:
    with pytest.raises(InvalidError):
        KeySet(document)


def test_a_token_is_remembered_by_its_digest_without_the_space_around_it(auth: Authenticator) -> None:
    token = signed({"sub": "ada", "exp": time.time() + 60}).removeprefix("Bearer ")
    for spaces in ("", " ", "   "):
        assert auth.caller(f"bearer {spaces}{token}{spaces}").sender == "ada"
    assert [len(name) for name in auth._cache] == [32]


def test_without_an_issuer_the_start_says_what_that_means(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "key").write_bytes(KEY)
    config = {"key_file": str(tmp_path / "key")}
    with caplog.at_level(logging.WARNING):
        Authenticator({**config, "development": "yes"})
        Authenticator({**config, "issuer": "https://id", "audience": "chat"})
        assert caplog.records == []
        Authenticator(config)
    assert [r.message.split()[0] for r in caplog.records] == ["IMRAY_JWT_ISSUER", "IMRAY_JWT_AUDIENCE"]


def test_keys_come_from_the_web_or_a_file_and_from_nowhere_else() -> None:
    for url in ("file:///etc/passwd", "ftp://id/keys", "data://x"):
        with pytest.raises(InvalidError, match="https"):
            Authenticator({"jwks": url})


class Provider:
    """An identity provider that answers when the test says so."""

    def __init__(self) -> None:
        self.document: object = {"keys": [rsa_jwk(kid="one")]}
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()
        self.now_s = 0.0

    def get(self, url: str, timeout_s: float) -> bytes:
        self.asked += 1
        assert self.answers.wait(_WAIT_S)
        if isinstance(self.document, Exception):
            raise self.document
        return json.dumps(self.document).encode()

    def keys(self) -> RemoteKeys:
        return RemoteKeys("https://id/keys", Settings(), lambda: self.now_s, self.get)


@pytest.fixture
def provider() -> Iterator[Provider]:
    one = Provider()
    yield one
    one.answers.set()


def settled(keys: RemoteKeys) -> RemoteKeys:
    """Once nothing is being fetched any more."""
    fetching = keys.fetching
    if fetching is not None:
        fetching.join(_WAIT_S)
        assert not fetching.is_alive()
    return keys


def refusal(call: Callable[[], Any]) -> int:
    with pytest.raises((ProblemError, jwt.InvalidTokenError)) as refused:
        call()
    return refused.value.status if isinstance(refused.value, ProblemError) else 401


@contextmanager
def silent_server() -> Iterator[str]:
    """It takes connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/keys"


def test_a_provider_that_hangs_holds_no_token_up() -> None:
    with silent_server() as url:
        auth = Authenticator({"jwks": url})
        start_s = time.monotonic()
        assert [status_of(auth, by_rsa(f"kid {i}")) for i in range(20)] == [503] * 20
        assert time.monotonic() - start_s < 1


def test_a_fetch_ends_at_its_deadline() -> None:
    with silent_server() as url:
        start_s = time.monotonic()
        with pytest.raises(TimeoutError):
            fetch(url, 0.2)
        assert time.monotonic() - start_s < 2


def test_without_keys_a_token_is_answered_with_503_until_they_come(provider: Provider) -> None:
    provider.answers.clear()
    keys = provider.keys()
    assert [refusal(lambda: keys.find("one", "RS256")) for _ in range(50)] == [503] * 50
    assert provider.asked == 1
    provider.answers.set()
    assert settled(keys).find("one", "RS256") is not None


def test_old_keys_serve_while_the_provider_is_away(provider: Provider) -> None:
    keys = settled(provider.keys())
    provider.document = OSError("away")
    for _ in range(3):
        provider.now_s += 1000
        assert keys.find("one", "RS256") is not None
        settled(keys)
    assert provider.asked == 4
    provider.document = {"keys": []}
    provider.now_s += 1000
    assert keys.find("one", "RS256") is not None
    assert settled(keys).find("one", "RS256") is not None


def test_unknown_keys_make_one_fetch_in_a_while(provider: Provider) -> None:
    keys = settled(provider.keys())
    assert [refusal(lambda: keys.find("two", "RS256")) for _ in range(50)] == [401] * 50
    assert provider.asked == 1
    provider.now_s += 100
    provider.answers.clear()
    assert [refusal(lambda: keys.find("two", "RS256")) for _ in range(50)] == [503] * 50
    provider.document = {"keys": [rsa_jwk(kid="two")]}
    provider.answers.set()
    assert settled(keys).find("two", "RS256") is not None
    assert refusal(lambda: keys.find("one", "RS256")) == 401
    assert provider.asked == 2
