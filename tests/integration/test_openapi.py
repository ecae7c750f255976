"""The OpenAPI document against a real system, by schemathesis: every operation, every check, valid and invalid data.

All checks of schemathesis are on, in all of its phases. Four of them find nothing to look at here, whatever the code
does: `missing_required_header` (no operation declares a header beside the token, which `ignored_auth` covers),
`use_after_free` (nothing is ever deleted), `ensure_resource_availability` (a conversation that nobody wrote to exists
and is empty) and `object_level_authorization` (its token is a service's, which may read every conversation).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import System

_ROOT = Path(__file__).parents[2]
_PHASES = ("examples", "coverage", "fuzzing", "stateful")
_EXAMPLES_MAX = 12
_SEED = 1
_TIMEOUT_S = 150
_STREAM = "text/event-stream"
_ARROW = "application/vnd.apache.arrow.stream"


@pytest.fixture(scope="module")
def document(system: System) -> dict[str, Any]:
    return httpx.get(f"{system.url}/openapi.json", timeout=30).json()


def _schemathesis(system: System, folder: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """What it printed, its report, and its events."""
    report = folder / "report.json"
    events = folder / "events.ndjson"
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{system.url}/openapi.json"),
        *("--checks", "all", "--phases", ",".join(_PHASES), "--mode", "all"),
        *("--header", f"Authorization: Bearer {system.token}"),
        *("--seed", str(_SEED), "--max-examples", str(_EXAMPLES_MAX), "--generation-database", "none"),
        *("--continue-on-failure", "--no-color"),
        *("--report", "json,ndjson", "--report-json-path", str(report), "--report-ndjson-path", str(events)),
    ]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    said = done.stdout + done.stderr
    assert report.exists(), said
    return said, json.loads(report.read_text()), [json.loads(line) for line in events.read_text().splitlines()]


def _media_types(events: list[dict[str, Any]]) -> set[str]:
    """Of the bodies that were sent."""
    recorders = [e["ScenarioFinished"]["recorder"] for e in events if "ScenarioFinished" in e]
    cases = [case["value"] for recorder in recorders for case in recorder.get("cases", {}).values()]
    return {case["media_type"] for case in cases if case.get("media_type")}


def test_schemathesis_finds_nothing(system: System, document: dict[str, Any], tmp_path: Path) -> None:
    made = httpx.put(
        f"{system.url}/v1/conversations/made",
        json={"members": [{"user": "an owner", "role": "owner"}]},
        headers={"Authorization": f"Bearer {system.token}"},
        timeout=30,
    )
    assert made.status_code == 201, made.text
    said, report, events = _schemathesis(system, tmp_path)
    assert (report["exit_code"], report["failures"], report["errors"]) == (0, [], []), said
    assert {kind: found for kind, found in report["warnings"].items() if found} == {}, said
    operations = {
        f"{method.upper()} {path}"
        for path, known in document["paths"].items()
        for method, operation in known.items()
        if _STREAM
        not in operation["responses"].get("200", {}).get("content", {})  # it has no end: see schemathesis.toml
    }
    assert report["operations"]["tested"] == len(operations)
    assert {phase: report["phases"][phase]["status"] for phase in _PHASES} == dict.fromkeys(_PHASES, "success")
    # it did reach what it tested: every operation took requests that the document calls valid
    accepted = {
        operation: sum(counts["accepted"] for counts in phases.values())
        for operation, phases in report["valid_rates"].items()
    }
    assert set(accepted) == operations
    assert min(accepted.values()) > 0, accepted
    assert _media_types(events) == {"application/json", _ARROW}


def test_a_method_that_a_path_has_not_is_answered_with_those_it_has(system: System, document: dict[str, Any]) -> None:
    for path, known in document["paths"].items():
        answer = httpx.request("DELETE", system.url + path.replace("{conv_id}", "c"), timeout=30)
        assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
        assert answer.headers["allow"] == ", ".join(sorted(method.upper() for method in known))


def test_a_whole_number_is_one_in_every_notation_of_json(system: System) -> None:
    headers = {"Authorization": f"Bearer {system.token}", "Content-Type": "application/json"}
    url = f"{system.url}/v1/conversations/whole/messages"
    ids = ("0190b0f26f2e7c3a9d270242ac120002", "0190b0f26f2e7c3a9d270242ac120003")
    with httpx.Client(headers=headers, timeout=30) as http:
        for i, number in zip(ids, ("4.0", "4e0"), strict=True):
            message = f'{{"client_msg_id":"{i}","body":"x","client_ts":{number}}}'
            assert http.post(url, content=message).status_code == 201
            batch = f'{{"messages":[{{"conv_id":"whole",{message[1:]}]}}'
            assert http.post(f"{system.url}/v1/messages:batch", content=batch).json()["duplicates"] == 1
        page = http.get(url, params={"after": "0.0", "limit": "1e1"}).json()
        assert [m["client_ts"] for m in page["messages"]] == [4, 4]
        assert http.put(f"{system.url}/v1/conversations/whole/topics", content='{"topics":0.0}').status_code == 200
        for wrong in ("4.5", "-1.0", "1e400"):
            message = f'{{"client_msg_id":"{ids[0]}","body":"x","client_ts":{wrong}}}'
            assert http.post(url, content=message).status_code == 422
            assert http.get(url, params={"after": wrong}).status_code == 422


def test_texts_over_their_bound_in_bytes_alone_are_refused(system: System) -> None:
    # few enough characters for `maxLength`: what the document can only say in words
    headers = {"Authorization": f"Bearer {system.token}"}
    with httpx.Client(base_url=f"{system.url}/v1/conversations/", headers=headers, timeout=30) as http:
        for name in ("%C3%A4" * 65, "%F0%9F%98%80" * 33):
            assert http.get(name).status_code == 422
        assert http.get("%C3%A4" * 64).status_code == 200
        assert http.get("c/messages", params={"topic": "ä" * 65}).status_code == 422
