"""How Ray keeps our actors: found by name, restarted without limit, and no call of theirs repeated behind our back."""

from __future__ import annotations

from typing import Any


def lasting(namespace: str, name: str, num_cpus: float) -> dict[str, Any]:
    """Options of an actor that outlives who made it; the one that has the name already is kept.

    Ray repeats no task: it does not say whether a failed one was executed, so callers repeat with the same ids."""
    return {
        "name": name,
        "namespace": namespace,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        "max_task_retries": 0,
        "num_cpus": num_cpus,
    }
