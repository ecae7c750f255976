"""TLS for connections, with the files that Ray has: RAY_USE_TLS, RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and
RAY_TLS_CA_CERT.

As between Ray's own processes both ends show a certificate of the deployment's authority, the client its server's one,
and the client checks that the server's names the address that it connected to. The key of an endpoint is asked for all
the same.
"""

from __future__ import annotations

import os
import ssl

from imray.core.errors import InvalidError

_SWITCH = "RAY_USE_TLS"
_CERT = "RAY_TLS_SERVER_CERT"
_KEY = "RAY_TLS_SERVER_KEY"
_CA = "RAY_TLS_CA_CERT"


def server_context() -> ssl.SSLContext | None:
    """For servers; None: Ray uses no TLS. InvalidError where a file is not named, not there, or is not what it should
    be."""
    return _context(ssl.PROTOCOL_TLS_SERVER)


def client_context() -> ssl.SSLContext | None:
    """For clients; as `server_context`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT)


def _context(protocol: ssl._SSLMethod) -> ssl.SSLContext | None:
    if os.environ.get(_SWITCH, "0").lower() not in ("1", "true"):
        return None
    cert = _file(_CERT)
    key = _file(_KEY)
    authority = _file(_CA)
    # of a client's context the default is to check the server's name, too
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(cert, key)
    except OSError as e:
        raise InvalidError(f"{_CERT} ({cert}) and {_KEY} ({key}) cannot be used: {e}") from e
    try:
        context.load_verify_locations(authority)
    except OSError as e:
        raise InvalidError(f"{_CA} ({authority}) cannot be used: {e}") from e
    return context


def _file(variable: str) -> str:
    name = os.environ.get(variable, "")
    if not name:
        raise InvalidError(f"{_SWITCH} is set, but {variable} does not name a file")
    if not os.path.isfile(name):
        raise InvalidError(f"{variable} names {name}: there is no such file")
    return name
