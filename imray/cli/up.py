"""`imray up`, `imray down`, `imray token`: the life of a system over one data folder."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from imray.cli import own_process
from imray.core.errors import ImrayError, InvalidError, UnavailableError
from imray.log import private
from imray.log.private import PrivateFolder

_TOKEN_DAYS = 30
_DETACH_TIMEOUT_S = 90.0
_DOWN_TIMEOUT_S = 40.0
# Files of the folder `run/`
_INFO = "up.json"
_LOG = "up.log"
_KEY = "jwt.key"
_RAY_TOKEN = "ray.token"
_UMASK = 0o027
"""The log is for its owner to write and for its group to read."""
_LOOPBACK = ("127.0.0.1", "::1", "localhost")

Data = Annotated[Path, typer.Option("--data", envvar="IMRAY_DATA", help="The folder that holds the log.")]


def up(
    data: Data = Path("imray-data"),
    port: Annotated[int, typer.Option(envvar="IMRAY_PORT", help="HTTP port; 0 picks a free one.")] = 8080,
    host: Annotated[str, typer.Option(envvar="IMRAY_HOST", help="Address to listen on.")] = "127.0.0.1",
    shards: Annotated[
        int | None, typer.Option(envvar="IMRAY_SHARDS", help="Fixed when the folder is made; default 2.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(envvar="IMRAY_RAY_ADDRESS", help="A running Ray cluster; none: a local one.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return when it is up; it runs on.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Send a small sample chat, show numbers and an audit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say url and token as JSON.")] = False,
) -> None:
    """Start imray: Ray actors for the shards, a gateway, and a token to try it with.

    Without --address a local Ray cluster is started that ends with this command (Ctrl-C).

    Examples:

      imray up --data ./chat --port 8080

      imray up --data ./chat --detach; imray status --data ./chat; imray down --data ./chat

      imray up --data /shared/chat --address auto --shards 8 --detach
    """
    data = private.resolved(data)
    os.umask(os.umask(_UMASK) | _UMASK)  # of the shards too: Ray starts them from here
    if detach and address is None:
        _spawn(data, port, host, shards, as_json)
        return
    info = _start(data, port, host, shards, address, as_json)
    if demo:
        from imray.cli.demo import run_demo

        run_demo(info)
    if detach:
        return
    if not as_json:
        typer.echo("Ctrl-C ends it.")
    _wait_and_stop(data)


def down(data: Data = Path("imray-data")) -> None:
    """End the system over one data folder, and no other. The data stays.

    Example:

      imray down --data ./chat
    """
    data = private.resolved(data)
    info = read_info(data)
    if info is None:
        raise InvalidError(f"nothing runs over {data}: there is no {data / private.RUN / _INFO}")
    if info["address"] is not None:
        _down_on_cluster(data, info["address"])
    elif not own_process.runs(info):
        typer.echo("it had ended already")
    elif not own_process.end(info, _DOWN_TIMEOUT_S):
        raise UnavailableError(f"process {info['pid']} does not end: see {data / private.RUN / _LOG}")
    _forget(data)
    typer.echo("down; the data stays in " + str(data))


def token(
    data: Data = Path("imray-data"),
    sender: Annotated[str, typer.Option("--sub", help="Who the token speaks for.")] = "me",
    service: Annotated[bool, typer.Option("--service", help="May name the sender of each message.")] = False,
    days: Annotated[float, typer.Option(help="How long it is valid.")] = _TOKEN_DAYS,
) -> None:
    """Make a token for development, signed with the data folder's own key.

    Example:

      export IMRAY_TOKEN=$(imray token --data ./chat --sub alice)
    """
    from api.auth import make_token

    if not 0 < days <= 3650:
        raise InvalidError(f"{days} days: more than 0, at most 3650")
    typer.echo(make_token(_dev_key(private.resolved(data)), sender, service, days * 86400))


def read_info(data: Path) -> dict[str, Any] | None:
    """What `imray up` left about the system over a folder: url, token, pid, started, namespace, address."""
    run = private.find_run(data)
    if run is None:
        return None
    with run:
        found = run.read(_INFO)
    try:
        return None if found is None else dict(json.loads(found))
    except (ValueError, TypeError) as e:
        note = data / private.RUN / _INFO
        raise InvalidError(f"{note} is damaged ({e}): `rm {shlex.quote(str(note))}`, then start imray again") from e


def _forget(data: Path) -> None:
    """Take away what `read_info` reads, where it is still there."""
    run = private.find_run(data)
    if run is not None:
        with run:
            run.remove(_INFO)


def _start(data: Path, port: int, host: str, shards: int | None, address: str | None, as_json: bool) -> dict[str, Any]:
    from api.server import GatewayConfig, free_port
    from imray.deploy import system
    from imray.log.manifest import create_or_open
    from imray.log.store import LocalStore
    from imray.settings import Settings

    settings = Settings.from_env()
    with private.make_run(data, shared=address is not None) as run:
        _refuse_second(data)
        create_or_open(LocalStore(data), shards)
        auth = _auth_config(run, host)
        if address is None:
            run.secret(_RAY_TOKEN, make=True)
    if address is None:
        port = free_port(host, port)
    # before signal handlers are set: ray.init replaces that of SIGTERM
    system.connect(address, token_file=data / private.RUN / _RAY_TOKEN)
    steps = system.up(data, shards, settings, GatewayConfig(host, port, auth))
    try:
        while True:
            step = next(steps)
            if not as_json:
                typer.echo(f"  {step} ...", err=True)
    except StopIteration as done:
        deployment = done.value
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    info: dict[str, Any] = {
        "url": f"http://{'[' + shown + ']' if ':' in shown else shown}:{deployment.port}",
        "token": None,
        "pid": os.getpid(),
        "started": own_process.started(os.getpid()),
        "namespace": deployment.namespace,
        "address": address,
        "data": str(data),
    }
    if auth.get("development"):
        from api.auth import make_token

        info["token"] = make_token(_dev_key(data), "me", True, _TOKEN_DAYS * 86400)
    with private.make_run(data, shared=address is not None) as run:
        run.write(_INFO, json.dumps(info, indent=1).encode())
    if as_json:
        typer.echo(json.dumps(info))
    else:
        _print_info(info)
    return info


def _print_info(info: dict[str, Any]) -> None:
    typer.echo(f"imray is up over {info['data']}\n  url    {info['url']}    (API: {info['url']}/docs)")
    if info["token"] and sys.stdout.isatty():
        typer.echo(f"  token  {info['token']}\n         (development, role service, {_TOKEN_DAYS} days)")
    elif info["token"]:  # what is not shown to a person may be kept, and read by others
        typer.echo(f"  token  `imray token --service --data {shlex.quote(str(info['data']))}` makes one")
    else:
        typer.echo("  token  from your identity provider")


def _wait_and_stop(data: Path) -> None:
    """Run until SIGINT or SIGTERM, then end in good order."""
    from imray.deploy import system
    from imray.log.manifest import read
    from imray.log.store import LocalStore

    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(timeout=3600):
        pass
    typer.echo("ending ...", err=True)
    manifest = read(LocalStore(data))
    assert manifest is not None
    system.down(manifest)
    system.disconnect()
    _forget(data)


def _spawn(data: Path, port: int, host: str, shards: int | None, as_json: bool) -> None:
    """Run `imray up` in a process of its own that outlives this one, and wait until it is up."""
    command = [sys.executable, "-m", "imray.cli", "up", "--data", str(data), "--port", str(port), "--host", host]
    if shards is not None:
        command += ["--shards", str(shards)]
    with private.make_run(data) as run:
        _refuse_second(data)
        run.remove(_INFO)
        with os.fdopen(run.new_file(_LOG), "wb") as log:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + _DETACH_TIMEOUT_S
        while (info := read_info(data)) is None:
            if child.poll() is not None or time.monotonic() > deadline:
                lines = (run.read(_LOG) or b"").decode(errors="replace").strip().splitlines() or ["no reason given"]
                raise UnavailableError(f"it did not start: {lines[-1]} (all of it: {run.path / _LOG})")
            time.sleep(0.05)
    if as_json:
        typer.echo(json.dumps(info))
    else:
        _print_info(info)
        typer.echo(f"`imray down --data {shlex.quote(str(data))}` ends it.")


def _down_on_cluster(data: Path, address: str) -> None:
    from imray.deploy import system
    from imray.log.manifest import read
    from imray.log.store import LocalStore

    manifest = read(LocalStore(data))
    if manifest is None:
        raise InvalidError(f"{data} is no data folder: it has no imray.json")
    system.connect(address)
    try:
        system.down(manifest)
    finally:
        system.disconnect()


def _refuse_second(data: Path) -> None:
    """InvalidError where a system of this machine's own runs over the folder."""
    running = read_info(data)
    if running is not None and running["address"] is None and own_process.runs(running):
        down = f"`imray down --data {shlex.quote(str(data))}`"
        raise InvalidError(f"it runs already: {running['url']}, process {running['pid']}; {down}")


def _auth_config(run: PrivateFolder, host: str) -> dict[str, str]:
    """How callers prove who they are: from the environment, or on loopback a key of the data folder's own."""
    names = {"key_file": "IMRAY_JWT_KEY_FILE", "jwks": "IMRAY_JWKS"}
    config = {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}
    if not config:
        if host not in _LOOPBACK:
            raise InvalidError(
                f"listening on {host} needs a way to check tokens: set IMRAY_JWT_KEY_FILE (HS256) or IMRAY_JWKS"
            )
        run.secret(_KEY, make=True)
        config = {"key_file": str(run.path / _KEY), "development": "yes"}
    for key, name in {"issuer": "IMRAY_JWT_ISSUER", "audience": "IMRAY_JWT_AUDIENCE"}.items():
        if os.environ.get(name):
            config[key] = os.environ[name]
    return config


def _dev_key(data: Path) -> bytes:
    run = private.find_run(data)
    key = None
    if run is not None:
        with run:
            key = run.secret(_KEY, make=False)
    if key is None:
        raise InvalidError(f"{data} has no development key: start it once with `imray up --data {data}`")
    return key.strip()


__all__ = ["ImrayError", "down", "read_info", "token", "up"]
