"""Members as a gateway's fake engine has them: nobody created any conversation."""

from __future__ import annotations

from imray.core.members import Roles
from imray.core.replies import Refusal


class FakeMembers:
    """Says that every conversation is open, or refuses as its engine does."""

    def __init__(self) -> None:
        self.refusal: Refusal | None = None

    async def roles(self, conv_id: str, users: list[str]) -> Roles | Refusal:
        return self.refusal or Roles(False, False, 0, 1, dict.fromkeys(users))
