"""`imray up`, `imray down`, `imray token`: the life of a system over one data folder."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from imray.core.errors import ImrayError, InvalidError, UnavailableError

_TOKEN_DAYS = 30
_DETACH_TIMEOUT_S = 90.0
_DOWN_TIMEOUT_S = 40.0
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
    data = data.resolve()
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
    data = data.resolve()
    info = read_info(data)
    if info is None:
        raise InvalidError(f"nothing runs over {data}: there is no {_info_path(data)}")
    if info["address"] is not None:
        _down_on_cluster(data, info["address"])
    elif not _is_ours(info):
        typer.echo("it had ended already")
    else:
        os.kill(info["pid"], signal.SIGTERM)
        if not _wait_gone(info, _DOWN_TIMEOUT_S):
            raise UnavailableError(f"process {info['pid']} does not end: see {data / 'run' / 'up.log'}")
    _info_path(data).unlink(missing_ok=True)
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
    typer.echo(make_token(_dev_key(data.resolve(), make=False), sender, service, days * 86400))


def read_info(data: Path) -> dict[str, Any] | None:
    """What `imray up` left about the system over a folder: url, token, pid, started, namespace, address."""
    try:
        return json.loads(_info_path(data).read_text())
    except FileNotFoundError:
        return None


def _start(data: Path, port: int, host: str, shards: int | None, address: str | None, as_json: bool) -> dict[str, Any]:
    from imray.cluster import deploy
    from imray.cluster.gateway import GatewayConfig, free_port
    from imray.log.manifest import create_or_open
    from imray.log.store import LocalStore
    from imray.settings import Settings

    settings = Settings.from_env()
    try:
        (data / "run").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise InvalidError(f"cannot make {data / 'run'}: {e.strerror}; choose another folder with --data") from e
    running = read_info(data)
    if running is not None and running["address"] is None and _is_ours(running):
        raise InvalidError(f"it runs already: {running['url']}, process {running['pid']}; `imray down --data {data}`")
    create_or_open(LocalStore(data), shards)
    if address is None:
        for left_over in (data / "tmp").glob("*"):  # of writers that were killed before they gave them a name
            left_over.unlink(missing_ok=True)
    auth = _auth_config(data, host)
    if address is None:
        port = free_port(host, port)
    # before signal handlers are set: ray.init replaces that of SIGTERM
    deploy.connect(address)
    steps = deploy.up(data, shards, settings, GatewayConfig(host, port, auth))
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
        "started": _start_time(os.getpid()),
        "namespace": deployment.namespace,
        "address": address,
        "data": str(data),
    }
    if auth.get("development"):
        from api.auth import make_token

        info["token"] = make_token(_dev_key(data, make=False), "me", True, _TOKEN_DAYS * 86400)
    _write_private(_info_path(data), json.dumps(info, indent=1).encode())
    if as_json:
        typer.echo(json.dumps(info))
    else:
        _say(info)
    return info


def _say(info: dict[str, Any]) -> None:
    typer.echo(f"imray is up over {info['data']}\n  url    {info['url']}    (API: {info['url']}/docs)")
    if info["token"]:
        typer.echo(f"  token  {info['token']}\n         (development, role service, {_TOKEN_DAYS} days)")
    else:
        typer.echo("  token  from your identity provider")


def _wait_and_stop(data: Path) -> None:
    """Run until SIGINT or SIGTERM, then end in good order."""
    import ray

    from imray.cluster import deploy
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
    deploy.down(manifest)
    ray.shutdown()
    _info_path(data).unlink(missing_ok=True)


def _spawn(data: Path, port: int, host: str, shards: int | None, as_json: bool) -> None:
    """Run `imray up` in a process of its own that outlives this one, and wait until it is up."""
    (data / "run").mkdir(parents=True, exist_ok=True)
    running = read_info(data)
    if running is not None and running["address"] is None and _is_ours(running):
        raise InvalidError(f"it runs already: {running['url']}, process {running['pid']}")
    _info_path(data).unlink(missing_ok=True)
    command = [sys.executable, "-m", "imray.cli", "up", "--data", str(data), "--port", str(port), "--host", host]
    if shards is not None:
        command += ["--shards", str(shards)]
    log_path = data / "run" / "up.log"
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    deadline = time.monotonic() + _DETACH_TIMEOUT_S
    while (info := read_info(data)) is None:
        if child.poll() is not None or time.monotonic() > deadline:
            lines = log_path.read_text(errors="replace").strip().splitlines() or ["no reason given"]
            raise UnavailableError(f"it did not start: {lines[-1]} (all of it: {log_path})")
        time.sleep(0.05)
    if as_json:
        typer.echo(json.dumps(info))
    else:
        _say(info)
        typer.echo(f"`imray down --data {data}` ends it.")


def _down_on_cluster(data: Path, address: str) -> None:
    import ray

    from imray.cluster import deploy
    from imray.log.manifest import read
    from imray.log.store import LocalStore

    manifest = read(LocalStore(data))
    if manifest is None:
        raise InvalidError(f"{data} is no data folder: it has no imray.json")
    deploy.connect(address)
    try:
        deploy.down(manifest)
    finally:
        ray.shutdown()


def _auth_config(data: Path, host: str) -> dict[str, str]:
    """How callers prove who they are: from the environment, or on loopback a key of the data folder's own."""
    names = {"key_file": "IMRAY_JWT_KEY_FILE", "jwks": "IMRAY_JWKS"}
    config = {key: os.environ[name] for key, name in names.items() if os.environ.get(name)}
    if not config:
        if host not in _LOOPBACK:
            raise InvalidError(
                f"listening on {host} needs a way to check tokens: set IMRAY_JWT_KEY_FILE (HS256) or IMRAY_JWKS"
            )
        _dev_key(data, make=True)
        config = {"key_file": str(_key_path(data)), "development": "yes"}
    for key, name in {"issuer": "IMRAY_JWT_ISSUER", "audience": "IMRAY_JWT_AUDIENCE"}.items():
        if os.environ.get(name):
            config[key] = os.environ[name]
    return config


def _dev_key(data: Path, make: bool) -> bytes:
    path = _key_path(data)
    if not path.exists():
        if not make:
            raise InvalidError(f"{data} has no development key: start it once with `imray up --data {data}`")
        _write_private(path, secrets.token_hex(32).encode())
    return path.read_bytes().strip()


def _write_private(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    fd = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(content)
    temporary.replace(path)


def _key_path(data: Path) -> Path:
    return data / "run" / "jwt.key"


def _info_path(data: Path) -> Path:
    return data / "run" / "up.json"


def _start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: a pid alone may have passed to another process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return None


def _is_ours(info: dict[str, Any]) -> bool:
    return info["started"] is not None and _start_time(info["pid"]) == info["started"]


def _wait_gone(info: dict[str, Any], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while _is_ours(info):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


__all__ = ["ImrayError", "down", "read_info", "token", "up"]
