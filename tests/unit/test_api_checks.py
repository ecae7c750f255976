"""What the gateway refuses before it goes further, without a gateway."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from api import checks, schemas
from api.auth import Authenticator, Caller, make_token
from api.door import decode
from api.problems import ProblemError
from imray.core.errors import InvalidError
from imray.core.routing import check_text
from imray.settings import Settings

SERVICE, PLAIN = Caller("bot", True), Caller("ada", False)


@pytest.mark.parametrize(
    ("fast", "documented"),
    [
        (checks.MessageIn, schemas.SendRequest),
        (checks.BatchMessageIn, schemas.BatchMessage),
        (checks.BatchIn, schemas.BatchRequest),
    ],
)
def test_what_is_decoded_is_what_is_documented(fast: Any, documented: Any) -> None:
    def shape(schema: dict[str, Any]) -> tuple[set[str], set[str], bool]:
        return set(schema["properties"]), set(schema["required"]), schema["additionalProperties"]

    name = fast.__name__
    mine = msgspec.json.schema(fast)["$defs"][name]
    assert shape(mine) == shape(documented.model_json_schema())


def test_a_batch_becomes_columns() -> None:
    messages = [
        {"conv_id": f"c{i % 2}", "client_msg_id": uuid.uuid4().hex, "body": "x" * i, "client_ts": i or None}
        for i in range(4)
    ]
    data = json.dumps({"messages": messages}).encode()
    batch, conv_ids = checks.check_batch_json(data, PLAIN, Settings())
    assert conv_ids == ["c0", "c1", "c0", "c1"]
    assert batch.column("sender").to_pylist() == ["ada"] * 4
    assert batch.column("body").to_pylist() == [b"", b"x", b"xx", b"xxx"]
    assert [b.hex() for b in batch.column("client_msg_id").to_pylist()] == [m["client_msg_id"] for m in messages]
    assert batch.column("client_ts").cast(pa.int64()).to_pylist() == [None, 1, 2, 3]


def test_the_message_with_the_bad_id_is_named() -> None:
    messages = [{"conv_id": "c", "client_msg_id": t, "body": ""} for t in (uuid.uuid4().hex, "nonsense")]
    with pytest.raises(ProblemError, match="message 1"):
        checks.check_batch_json(json.dumps({"messages": messages}).encode(), PLAIN, Settings())


def test_only_a_service_names_the_sender() -> None:
    data = json.dumps({"client_msg_id": uuid.uuid4().hex, "body": "", "sender": "eve"}).encode()
    assert checks.check_message(data, "c", SERVICE, Settings()).sender == "eve"
    with pytest.raises(ProblemError) as refused:
        checks.check_message(data, "c", PLAIN, Settings())
    assert refused.value.status == 403


@pytest.mark.parametrize("text", ["", "x" * 128, "x" * 129, "\u00e9" * 64, "\u00e9" * 65, "a b", *map(chr, range(256))])
def test_a_single_send_has_the_names_that_check_text_lets_through(text: str) -> None:
    """Whose short way for plain names must let nothing else through."""
    data = json.dumps({"client_msg_id": uuid.uuid4().hex, "body": "", "topic": text}).encode()
    try:
        check_text(text, "topic", 128)
    except InvalidError as e:
        with pytest.raises(ProblemError, match=str(e)):
            checks.check_message(data, "c", PLAIN, Settings())
    else:
        assert checks.check_message(data, "c", PLAIN, Settings()).topic == text


def test_paths_are_decoded_once() -> None:
    assert decode("conv_id", "a%2Fb%2525") == "a/b%25"
    for bad in ("a/b", "%ff"):
        with pytest.raises(ProblemError):
            decode("conv_id", bad)


def test_tokens_of_a_shared_key(tmp_path: Path) -> None:
    key = b"k" * 32
    (tmp_path / "key").write_bytes(key)
    now = [time.time()]
    auth = Authenticator({"key_file": str(tmp_path / "key"), "audience": "chat"}, clock_s=lambda: now[0])
    with pytest.raises(ProblemError, match="aud"):
        auth.caller(f"Bearer {make_token(key, 'ada', False, 60)}")
    claims = {"sub": "ada", "aud": "chat", "exp": now[0] + 30, "roles": ["service"]}
    token = "Bearer " + jwt.encode(claims, key, algorithm="HS256")
    assert auth.caller(token) == Caller("ada", True)
    assert auth.caller(token) == Caller("ada", True)
    none = jwt.encode({**claims, "sub": "eve"}, None, algorithm="none")
    with pytest.raises(ProblemError):
        auth.caller(f"Bearer {none}")
    (tmp_path / "short").write_bytes(b"short")
    with pytest.raises(InvalidError, match="32"):
        Authenticator({"key_file": str(tmp_path / "short")})
    with pytest.raises(InvalidError, match="IMRAY_JWKS"):
        Authenticator({})


def test_tokens_of_a_jwks(tmp_path: Path) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(private.public_key())) | {"kid": "one", "alg": "RS256"}
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [public]}))
    auth = Authenticator({"jwks": str(tmp_path / "jwks.json")})
    claims = {"sub": "ada", "exp": time.time() + 60}
    good = jwt.encode(claims, private, algorithm="RS256", headers={"kid": "one"})
    assert auth.caller(f"Bearer {good}") == Caller("ada", False)
    other = jwt.encode(claims, private, algorithm="RS256", headers={"kid": "two"})
    confused = jwt.encode(claims, b"k" * 32, algorithm="HS256", headers={"kid": "one"})
    for bad in (other, confused):
        with pytest.raises(ProblemError):
            auth.caller(f"Bearer {bad}")
