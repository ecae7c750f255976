"""What the mix of attacks needs beside the system: an identity provider, and the attackers' processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.attacks import ATTACKS, READY, Target, to_json

_ROOT = Path(__file__).parents[2]
_STOP_TIMEOUT_S = 60.0
_TOKEN_S = 2 * 86_400


class Provider:
    """An identity provider: a key, who serves it, and tokens signed with it."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        public = jwt.algorithms.ECAlgorithm.to_jwk(self._key.public_key(), as_dict=True)
        document = json.dumps({"keys": [{**public, "kid": "one", "use": "sig", "alg": "ES256"}]}).encode()
        self.fetches = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.fetches += 1
                self.send_response(200)
                self.send_header("Content-Length", str(len(document)))
                self.end_headers()
                self.wfile.write(document)

            def log_message(self, *_: object) -> None:
                """Nothing: it would stand in the test's output."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/keys"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def token(self, name: str, service: bool = False) -> str:
        """One for a name."""
        claims = {"sub": name, "exp": int(time.time()) + _TOKEN_S}
        return self.sign(json.dumps(claims | ({"role": "service"} if service else {})))

    def sign(self, claims: str) -> str:
        """A token that says whatever it is given."""
        return jwt.PyJWS().encode(claims.encode(), self._key, "ES256", {"kid": "one"})

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def hostile(provider: Provider) -> list[str]:
    """Well signed, and wrong."""
    claims = [
        '{"sub": "eve", "exp": 1%s}' % ("0" * 400),
        '{"sub": "eve", "exp": 1e400}',
        '{"sub": "eve", "exp": true}',
        '{"sub": "e\\u202eve", "exp": 4000000000}',
        '{"sub": ["eve"], "exp": 4000000000}',
        '{"sub": "eve", "exp": 4000000000, "aud": %s}' % ("[" * 5000 + "]" * 5000),
        "[]",
    ]
    return [provider.sign(c) for c in claims]


class Attackers:
    """Processes that attack, and what they saw in the end."""

    def __init__(self, target: Target, errors: IO[str]) -> None:
        """They are there, and wait: to start a process costs more than what most of them do."""
        self.running: dict[str, subprocess.Popen[str]] = {}
        self.seen: dict[str, Counter[str]] = {}
        for name in ATTACKS:
            command = [sys.executable, "-m", "tests.support.attacks", name]
            self.running[name] = subprocess.Popen(
                command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._tell(to_json(target))
        for name, process in self.running.items():
            assert process.stdout is not None
            assert process.stdout.readline() == READY, name

    def _tell(self, line: str) -> None:
        for process in self.running.values():
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()

    def attack(self) -> None:
        """All at once."""
        self._tell("go\n")

    def check(self) -> None:
        """None has ended by itself."""
        ended = [name for name, process in self.running.items() if process.poll() is not None]
        assert ended == []

    def end(self) -> None:
        """All; each says what it saw."""
        for process in self.running.values():
            assert process.stdin is not None
            process.stdin.close()
        for name, process in self.running.items():
            assert process.stdout is not None
            text = process.stdout.read()
            assert process.wait(_STOP_TIMEOUT_S) == 0, name
            process.stdout.close()
            self.seen[name] = Counter(json.loads(text))
        self.running.clear()

    def kill(self) -> None:
        """Those that are left after an error."""
        for process in self.running.values():
            process.kill()
            process.communicate(timeout=_STOP_TIMEOUT_S)


@contextmanager
def attackers(target: Target, errors: Path) -> Iterator[Attackers]:
    """They wait; none is left at the end."""
    with errors.open("w") as file:
        made = Attackers(target, file)
        try:
            yield made
        finally:
            made.kill()
