"""`imray create` and `imray members`: conversations with members, and who they are.

Owns how members are written as arguments and shown. Does not own what a role may do (docs/live.md, Members).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imray.cli.common import Data, Json, Timeout, Token, Url, find_target, printable, speaking_to, table
from imray.cli.messages import Conv
from imray.core.errors import InvalidError, UnavailableError

if TYPE_CHECKING:
    from imray.client import Client, Member, MembersNow

_TIMEOUT_S = 10.0
_PAGE_MEMBERS = 1000
_NAMED_MAX = 5
_ROLE_HELP = "The role is owner, member (the default) or reader; where a user's name has a `:`, write the role, too."


def create(
    conv: Conv,
    public: Annotated[bool, typer.Option("--public", help="Anybody may pull and listen.")] = False,
    member: Annotated[
        list[str] | None, typer.Option("--member", metavar="USER[:ROLE]", help=f"A member; repeatable. {_ROLE_HELP}")
    ] = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Create a conversation with members.

    From then on only they may use it. The caller is an owner; with a token of the role service, as `imray up` leaves
    one, name an owner. Where it is so already, that is success.

    Examples:

      imray create tea --member ada:owner --member bob --data ./chat

      imray create news --public --member ada:owner --data ./chat
    """
    from imray.client import Client

    members = _members(member or [])
    target = find_target(url, token, data)
    with speaking_to(target), Client(target.url, target.token, timeout_s=timeout) as client:
        made = client.create_conversation(conv, public=public, members=members)
    if as_json:
        _print_json(asdict(made))
    else:
        typer.echo(f"{printable(conv)} {'is created' if made.created else 'was so already'}, {_count(made.members)}")


def members(
    conv: Conv,
    add: Annotated[
        list[str] | None,
        typer.Option("--add", metavar="USER[:ROLE]", help=f"Add, or change the role; repeatable. {_ROLE_HELP}"),
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", metavar="USER", help="Remove; repeatable, after all of --add.")
    ] = None,
    url: Url = None,
    token: Token = None,
    data: Data = None,
    as_json: Json = False,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Show the members of a conversation, or change them.

    Whoever is to be added is added first, so that a last owner can be replaced; where nobody may be
    removed the additions hold. To repeat a command is safe.

    Examples:

      imray members tea --data ./chat

      imray members tea --add carl --add dora:reader --remove bob --data ./chat
    """
    from imray.client import Client

    added = _members(add or [])
    target = find_target(url, token, data)
    with speaking_to(target), Client(target.url, target.token, timeout_s=timeout) as client:
        if added or remove:
            _change(client, conv, added, remove or [], as_json)
        else:
            _show(client, conv, as_json)


def _change(client: Client, conv: str, added: list[Member], removed: list[str], as_json: bool) -> None:
    from imray.client import AuthError, ServerError

    now: MembersNow | None = None
    if added:
        now = client.add_members(conv, added)
    if removed:
        try:
            now = client.remove_members(conv, removed)
        except (InvalidError, AuthError, UnavailableError, ServerError) as e:
            if not added:
                raise
            raise type(e)(f"{e}; the additions hold: {_names(added)}") from e
    assert now is not None, "there is something to change"
    if as_json:
        _print_json(asdict(now))
    else:
        typer.echo(f"{printable(conv)} has {_count(now.members)}; so it is after number {now.after}")


def _show(client: Client, conv: str, as_json: bool) -> None:
    page = client.members(conv, limit=_PAGE_MEMBERS)
    found = list(page.members)
    if page.next is not None:
        found += client.iter_members(conv, page.next, _PAGE_MEMBERS)
    if as_json:
        _print_json({"conv_id": conv, "public": page.public, "members": [asdict(member) for member in found]})
        return
    typer.echo(table(("user", "role"), [(member.user, member.role) for member in found]))
    typer.echo(f"\n{_count(len(found))}; {'anybody' if page.public else 'only they'} may read")


def _members(texts: list[str]) -> list[Member]:
    """Members as arguments name them: USER or USER:ROLE. What stands behind the last `:` is the role, so that a
    mistyped one is refused and makes no user."""
    from imray.client import Member, MemberRole

    roles: dict[str, MemberRole] = {"owner": "owner", "member": "member", "reader": "reader"}
    found = []
    for text in texts:
        user, colon, role = text.rpartition(":")
        if not colon:
            found.append(Member(text))
        elif role in roles:
            found.append(Member(user, roles[role]))
        else:
            raise InvalidError(f"{text}: {role!r} is no role: owner, member or reader stands behind the last `:`")
    return found


def _names(added: list[Member]) -> str:
    names = ", ".join(printable(member.user) for member in added[:_NAMED_MAX])
    left = len(added) - _NAMED_MAX
    return names if left <= 0 else f"{names} and {left} more"


def _count(members: int) -> str:
    return "1 member" if members == 1 else f"{members} members"


def _print_json(value: object) -> None:
    import orjson

    typer.echo(orjson.dumps(value).decode())
