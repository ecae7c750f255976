"""`spec/asyncapi.yaml` and the code say the same of every item."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml

from api.live_docs import item_tag, live_page
from api.live_formats import FORMATS, JSON, live_holes, messages_item
from api.live_items import (
    AckItem,
    ClientItem,
    ErrorItem,
    LiveHole,
    LiveMessage,
    OkItem,
    PageItem,
    ServerItem,
    WelcomeItem,
)
from imray.settings import Settings
from tests.support.live_system import batch_of

_ROOT = Path(__file__).parents[2]
_SPEC: dict[str, Any] = yaml.safe_load((_ROOT / "spec" / "asyncapi.yaml").read_text())
_SCHEMAS: dict[str, Any] = _SPEC["components"]["schemas"]
_SIDES = {"fromClient": typing.get_args(ClientItem), "fromServer": typing.get_args(ServerItem)}
_ALL = [*_SIDES["fromClient"], *_SIDES["fromServer"], LiveMessage, LiveHole]


def _frame_schema(side: str) -> dict[str, Any]:
    return {**_SPEC["components"]["messages"][side]["payload"], "components": _SPEC["components"]}


@pytest.mark.parametrize("side", list(_SIDES))
def test_the_spec_lists_every_item_and_no_other(side: str) -> None:
    payload = _SPEC["components"]["messages"][side]["payload"]
    listed = [one["$ref"].rpartition("/")[2] for one in payload["items"]["oneOf"]]
    assert sorted(listed) == sorted(item.__name__ for item in _SIDES[side])
    assert payload["maxItems"] == Settings().live_items_max


def test_the_spec_describes_nothing_that_is_not_there() -> None:
    assert sorted(_SCHEMAS) == sorted(item.__name__ for item in _ALL)


@pytest.mark.parametrize("item", _ALL, ids=lambda item: item.__name__)
def test_an_item_has_the_fields_that_the_spec_names(item: Any) -> None:
    said = _SCHEMAS[item.__name__]
    fields = msgspec.structs.fields(item)
    tag = item_tag(item)
    names = {field.encode_name for field in fields} | ({"t"} if tag else set())
    needed = {field.encode_name for field in fields if field.required} | ({"t"} if tag else set())
    assert set(said["properties"]) == names
    assert set(said["required"]) == needed
    if tag:
        assert said["properties"]["t"] == {"enum": [tag]}


@pytest.mark.parametrize("item", _ALL, ids=lambda item: item.__name__)
def test_a_field_has_the_type_that_the_spec_names(item: Any) -> None:
    _, made = msgspec.json.schema_components([item], ref_template="#/components/schemas/{name}")
    for name, schema in made[item.__name__]["properties"].items():
        if name != "data":
            assert _SCHEMAS[item.__name__]["properties"][name] == schema, name


def test_the_pages_name_every_item_and_sub_protocol() -> None:
    contract = (_ROOT / "docs" / "live.md").read_text()
    page = live_page()
    for item in [*_SIDES["fromClient"], *_SIDES["fromServer"]]:
        assert f"`{item_tag(item)}`" in contract
        assert f"<td><code>{item_tag(item)}</code>" in page
    for name in FORMATS:
        assert name in contract
        assert name in page
        assert name in _SPEC["info"]["description"]


def test_what_is_told_is_as_the_spec_says() -> None:
    batch = batch_of("c", 3, [b"hello", b"\xff"])
    batch.holes.append((9, 9, "void"))
    told: list[ServerItem] = [
        WelcomeItem(1, "ada", False, 600, 20.0, 1000, 1 << 20),
        AckItem(1, "c", 1, "0198c0de-0000-7000-8000-000000000001", False, 1, 1, 1),
        ErrorItem(409, "conflict", "no", 1, None, "c", 3),
        messages_item(batch, texts_only=True),
        PageItem(1, "c", [], live_holes([(1, 2, "void")]), 1, 1, None),
        OkItem(1),
    ]
    jsonschema.validate(msgspec.json.decode(JSON.encode(told)), _frame_schema("fromServer"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"t": "ok"}], _frame_schema("fromServer"))


def test_what_the_spec_allows_is_taken() -> None:
    said = [
        {"t": "auth", "token": "x"},
        {"t": "subscribe", "ref": 1, "conv_id": "c", "after": None, "passive": True},
        {"t": "pull", "ref": 2, "conv_id": "c", "before": 3, "order": "desc"},
        {"t": "signal", "conv_id": "c", "kind": "typing", "data": {"any": "thing"}},
        {"t": "read", "ref": -1, "conv_id": "c", "seq": 0},
    ]
    jsonschema.validate(said, _frame_schema("fromClient"))
    assert len(JSON.decode(msgspec.json.encode(said), 1000)) == len(said)
