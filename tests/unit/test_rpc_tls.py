"""TLS with certificates as Ray has them: both ends show one, and a client without one does not get in."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from imray.core.errors import InvalidError
from imray.rpc import tls
from imray.rpc.client import RpcClient
from imray.rpc.endpoint import Endpoint, NoAnswerError
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer
from tests.support.rpc_peers import Echo, echoed, until

_BYTES_MAX = 4_000_000


class Authority:
    """Makes certificates of one deployment."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._certificate = self._sign(self._subject, self._key.public_key(), None)
        self.file = self._write("ca.crt", self._certificate.public_bytes(serialization.Encoding.PEM))

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / f"{self._name}-{name}"
        path.write_bytes(content)
        return path

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, host: str | None) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=host is None, path_length=None), critical=True)
        )
        if host is not None:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
            made = made.add_extension(names, critical=False)
        return made.sign(self._key, hashes.SHA256())

    def certify(self, host: str) -> tuple[Path, Path]:
        """The files of a certificate for an address, and of its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a process")])
        certificate = self._sign(subject, key.public_key(), host)
        pem = serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        return (
            self._write(f"{host}.crt", certificate.public_bytes(pem)),
            self._write(f"{host}.key", private),
        )


def _use(monkeypatch: pytest.MonkeyPatch, authority: Authority, host: str = "127.0.0.1") -> None:
    certificate, key = authority.certify(host)
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", str(certificate))
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(key))
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(authority.file))


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path, "ours")
    _use(monkeypatch, made)
    return made


@pytest.fixture
async def server(authority: Authority) -> AsyncIterator[RpcServer]:
    made = RpcServer(_BYTES_MAX, tls.server_context(), handshake_s=0.5, strangers_max=2)
    made.serve(3, {Method.APPEND: Echo().append})
    yield made
    await made.close()


@pytest.fixture
async def endpoint(server: RpcServer) -> Endpoint:
    return await server.open("127.0.0.1")


async def _exchange(endpoint: Endpoint) -> None:
    client = await RpcClient.connect(endpoint, 5, tls.client_context())
    contents = [bytes([n % 256]) * n for n in (0, 1, 20_000, 100_000, _BYTES_MAX)]
    assert await asyncio.gather(*(echoed(client, c) for c in contents)) == contents
    client.close()


async def test_calls_of_every_size(endpoint: Endpoint) -> None:
    await _exchange(endpoint)


def test_on_uvloop(authority: Authority) -> None:
    async def run() -> bool:
        server = RpcServer(_BYTES_MAX, tls.server_context())
        server.serve(3, {Method.APPEND: Echo().append})
        await _exchange(await server.open("127.0.0.1"))
        await server.close()
        return True

    assert uvloop.run(run())


async def test_what_is_sent_cannot_be_read(endpoint: Endpoint) -> None:
    with pytest.raises(NoAnswerError, match="no connection"):
        await RpcClient.connect(endpoint, 5)  # without TLS


async def test_a_client_without_a_certificate(server: RpcServer, endpoint: Endpoint, authority: Authority) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(authority.file)
    with pytest.raises(NoAnswerError, match="no connection"):
        await RpcClient.connect(endpoint, 5, bare)
    assert not server.connections
    await _exchange(endpoint)


async def test_a_client_of_another_authority(
    server: RpcServer, endpoint: Endpoint, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stranger.load_verify_locations(authority.file)
    stranger.load_cert_chain(*other.certify("127.0.0.1"))
    with pytest.raises(NoAnswerError, match="no connection"):
        await RpcClient.connect(endpoint, 5, stranger)
    assert not server.connections


async def test_a_server_of_another_authority(
    endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(monkeypatch, Authority(tmp_path, "other"))
    with pytest.raises(NoAnswerError, match="certificate verify failed"):
        await RpcClient.connect(endpoint, 5, tls.client_context())


async def test_a_server_at_another_address(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    _use(monkeypatch, authority, "127.0.0.9")
    server = RpcServer(_BYTES_MAX, tls.server_context())
    with pytest.raises(NoAnswerError, match="certificate verify failed"):
        await RpcClient.connect(await server.open("127.0.0.1"), 5, tls.client_context())
    await server.close()


async def test_strangers_in_the_handshake_of_tls_are_bounded_too(server: RpcServer, endpoint: Endpoint) -> None:
    loop = asyncio.get_running_loop()
    silent = [socket.create_connection((endpoint.host, endpoint.port)) for _ in range(5)]
    for one in silent:
        one.setblocking(False)
    await until(lambda: len(server._strangers) == 2)
    await _exchange(endpoint)
    for one in silent:
        assert await asyncio.wait_for(loop.sock_recv(one, 100), 5) == b"", "put out, or too late"
        one.close()
    await until(lambda: not server._strangers)


async def test_pushes_have_their_bound(server: RpcServer, endpoint: Endpoint) -> None:
    client = await RpcClient.connect(endpoint, 5, tls.client_context())
    client.transport.pause_reading()
    await until(lambda: len(server.connections) == 1)
    (caller,) = server.connections
    pushed = 0
    for _ in range(300):
        pushed += caller.push(3, Method.PUBLISH, (bytes(1_000_000),))
        await asyncio.sleep(0)
    assert pushed < 40
    client.close()


def test_no_tls_where_ray_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    assert tls.server_context() is None
    assert tls.client_context() is None
    monkeypatch.setenv("RAY_USE_TLS", "0")
    assert tls.server_context() is None


@pytest.mark.parametrize("variable", ["RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT"])
def test_files_that_are_not_there(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, variable: str, tmp_path: Path
) -> None:
    assert tls.server_context() is not None
    monkeypatch.delenv(variable)
    with pytest.raises(InvalidError, match=f"{variable} does not name a file"):
        tls.server_context()
    monkeypatch.setenv(variable, str(tmp_path / "missing"))
    with pytest.raises(InvalidError, match=f"{variable} names .*missing: there is no such file"):
        tls.client_context()
    empty = tmp_path / "empty"
    empty.write_text("")
    monkeypatch.setenv(variable, str(empty))
    with pytest.raises(InvalidError, match=f"{variable} .*cannot be used"):
        tls.client_context()


def test_a_key_of_another_certificate(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = authority.certify("127.0.0.8")
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(key))
    with pytest.raises(InvalidError, match="cannot be used"):
        tls.server_context()
