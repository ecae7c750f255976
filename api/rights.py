"""Who may read a conversation: asked of its shard, for each request, since a removal counts at once."""

from __future__ import annotations

from api.auth import Caller
from api.problems import ProblemError, refused
from imray.core.members import Roles
from imray.core.replies import Refusal
from imray.engine.engine import Engine

_FOR_MEMBERS = "the conversation is for its members, or was not created yet"


async def check_listens(engine: Engine, conv_id: str, caller: Caller) -> None:
    """ProblemError where the caller may not pull and listen: 403, or that of the shard's refusal."""
    if not caller.service:
        await roles_for_reader(engine, conv_id, caller, [])


async def roles_for_reader(engine: Engine, conv_id: str, caller: Caller, users: list[str]) -> Roles:
    """The roles of some users and of the caller, who may pull and listen; ProblemError as `check_listens`."""
    roles = await engine.members.roles(conv_id, [caller.sender, *users])
    if isinstance(roles, Refusal):
        raise refused(roles, caller.service)
    if not roles.may_listen(caller.sender, caller.service, engine.settings.conversations_open):
        raise ProblemError(403, "forbidden", _FOR_MEMBERS)
    return roles
