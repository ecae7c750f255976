"""What schemathesis cannot know of the API from its OpenAPI document. Loaded by schemathesis, see schemathesis.toml."""

from __future__ import annotations

import string
import uuid
from typing import Any

import pyarrow as pa
import schemathesis
from hypothesis import strategies as st

from imray.core.pages import SEQ_MAX
from imray.core.routing import PARTITIONS_MAX

ARROW = "application/vnd.apache.arrow.stream"
_TOPICS_TRIED_MAX = 1
_MEMBERS_MAX = 1000
MADE = "made"
"""A conversation that the test has created."""
OWNER = "an owner"
_BYTES_MAX = {
    "conv_id": 128,
    "sender": 128,
    "topic": 128,
    "content_type": 255,
    "body": 64 * 1024,
    "user": 128,
    "after": 128,
}


@st.composite
def _arrow_streams(draw: st.DrawFn) -> bytes:
    """Batches as Arrow IPC streams: no schema of JSON describes them."""
    return _stream(*draw(_arrow_columns()))


@st.composite
def _arrow_columns(draw: st.DrawFn) -> tuple[list[str], list[bytes], list[uuid.UUID]]:
    names = draw(st.lists(st.text(string.ascii_letters, min_size=1, max_size=20), min_size=1, max_size=3))
    bodies = draw(st.lists(st.binary(max_size=20), min_size=len(names), max_size=len(names)))
    ids = draw(st.lists(st.uuids(), min_size=len(names), max_size=len(names)))
    return names, bodies, ids


def _stream(names: list[str], bodies: list[bytes], ids: list[uuid.UUID]) -> bytes:
    columns = {
        "conv_id": pa.array(names),
        "client_msg_id": pa.array([i.bytes for i in ids], pa.binary(len(uuid.UUID(int=0).bytes))),
        "body": pa.array(bodies, pa.binary()),
    }
    sink = pa.BufferOutputStream()
    table = pa.table(columns)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


schemathesis.openapi.media_type(ARROW, _arrow_streams())


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Ask for few partitions: each is a process, and the 99 that are allowed take this machine minutes to start.

    Numbers out of bounds, and what is no number, go out as they are. Members of `MADE` are asked for, since other
    conversations have none; one of those that are named is an owner, each is named once, and a cursor is not beyond a
    head: no schema says so."""
    if case.operation.path.endswith("/topics") and isinstance(case.body, dict):
        topics = case.body.get("topics")
        if type(topics) in (int, float) and _TOPICS_TRIED_MAX < topics <= PARTITIONS_MAX:
            case.body["topics"] = type(topics)(_TOPICS_TRIED_MAX)
    if case.media_type == ARROW and isinstance(case.body, dict):
        # a link from another answer put its value into what is no JSON
        case.body = _stream(["linked"], [b"x"], [uuid.uuid4()])
    if "/members" in case.operation.path and _is_valid(case):
        case.path_parameters["conv_id"] = MADE
        if "user" in case.path_parameters:
            case.path_parameters["user"] = OWNER
    if isinstance(case.body, dict):
        _mend_members(case.operation.path, case.body)


def _is_valid(case: Any) -> bool:
    """Whether it was made to be taken: what was made to be refused goes out as it is."""
    return case.meta is None or case.meta.generation.mode.is_positive


def _mend_members(path: str, body: dict[str, Any]) -> None:
    members = body.get("members", [])
    if path.endswith(("/{conv_id}", "members:add")) and _are_members(members):
        body["members"] = list({m["user"]: m for m in members}.values())
        if path.endswith("/{conv_id}") and len(body["members"]) < _MEMBERS_MAX:
            body["members"] = [m for m in body["members"] if m["user"] != OWNER] + [{"user": OWNER, "role": "owner"}]
    seq = body.get("seq")
    if path.endswith("/cursor") and type(seq) in (int, float) and 0 <= seq <= SEQ_MAX and seq == int(seq):
        body["seq"] = 0


def _are_members(members: object) -> bool:
    if not isinstance(members, list) or len(members) > _MEMBERS_MAX:
        return False
    return all(isinstance(m, dict) and m.keys() == {"user", "role"} and isinstance(m["user"], str) for m in members)


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:
    """Leave out texts that have few enough characters, but too many bytes: 422 (or 413) is right for them, and JSON
    Schema, which counts characters, cannot say so. The descriptions do; tests of the gateway send such texts."""
    texts = [*(case.path_parameters or {}).items(), *(case.query or {}).items()]
    bodies = [case.body]
    if isinstance(case.body, dict) and isinstance(case.body.get("messages"), list):
        bodies += case.body["messages"]
    if isinstance(case.body, dict) and isinstance(case.body.get("members"), list):
        bodies += case.body["members"]
    if isinstance(case.body, dict) and isinstance(case.body.get("users"), list):
        texts += [("user", user) for user in case.body["users"]]
    for body in bodies:
        if isinstance(body, dict):
            texts += body.items()
    return all(_fits(value, _BYTES_MAX[name]) for name, value in texts if name in _BYTES_MAX)


def _fits(value: object, bytes_max: int) -> bool:
    if not isinstance(value, str) or len(value) > bytes_max:
        return True  # refused for what the schema does say
    return len(value.encode(errors="surrogatepass")) <= bytes_max
