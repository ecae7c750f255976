"""The rules of the delivery session, each with the change that removes it: a method's text with one piece replaced."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from imray.core import delivery_conversation
from imray.core.delivery import Delivery
from imray.core.delivery_book import FollowedBook
from imray.core.delivery_conversation import FollowedConversation
from imray.core.delivery_link import Link

_NEVER = "False"


@dataclass(frozen=True)
class RemovedRule:
    """What the session does no more, and how: in `owner.method`, `old` (which stands there once) becomes `new`."""

    rule: str
    owner: Any
    method: str
    old: str
    new: str
    shows: bool = False
    """Whether a wrong or unfinished list of messages follows, so that the property test must find it, too. (Without the
    rule for gaps the rule for numbers that were named still helps, only later.)"""


ALL = [
    RemovedRule("items of an old connection are ignored", Link, "is_current", "conn == self.conn and ", ""),
    RemovedRule("an item before the welcome is ignored", Delivery, "item", "if self.link.is_up:", "if True:"),
    RemovedRule(
        "until a subscribe is answered, items are of the former subscription",
        Delivery,
        "_take",
        " and followed.phase is FollowPhase.LIVE",
        "",
    ),
    RemovedRule(
        "an answer counts for its own subscribe",
        Delivery,
        "_begin",
        "self._book.answered(item.ref)",
        "self._book.get(item.conv_id)",
    ),
    RemovedRule("an answer names the conversation", Delivery, "_begin", "followed.conv_id != item.conv_id", _NEVER),
    RemovedRule("subscribe again from the last number shown", Delivery, "_subscribe", "followed.last_shown, ", "0, "),
    RemovedRule("a gap subscribes again", Delivery, "_show", "if followed.leaves_gap(item.upto)", "if False"),
    RemovedRule(
        "nothing is shown above a gap",
        FollowedConversation,
        "take",
        "                break",
        "                self.last_shown = seq\n                continue",
        True,
    ),
    RemovedRule(
        "what repeats is dropped",
        FollowedConversation,
        "take",
        "at = 0",
        "at = 0\n        self.last_shown = item.after",
        True,
    ),
    RemovedRule(
        "holes advance", FollowedConversation, "take", "holes[at].from_seq > seq", "holes[at].from_seq >= seq", True
    ),
    RemovedRule(
        "holes are told in order",
        FollowedConversation,
        "take",
        "sorted(item.holes, key=lambda void: void.from_seq)",
        "list(item.holes)",
    ),
    RemovedRule(
        "a hole ends where the item ends",
        FollowedConversation,
        "take",
        "min(holes[at].to_seq, item.upto)",
        "holes[at].to_seq",
    ),
    RemovedRule(
        "behind subscribes again",
        Delivery,
        "_take_live",
        "note_number(head)\n                self._ask_again(followed, now_ms)",
        "note_number(head)",
    ),
    RemovedRule("a lower epoch is not believed", Delivery, "_begin", "followed.is_stale(item) or ", ""),
    RemovedRule(
        "following anew keeps the epoch",
        FollowedConversation,
        "__init__",
        "0 if before is None else before._epoch",
        "0",
    ),
    RemovedRule(
        "an answer from above what was asked is not believed",
        Delivery,
        "_begin",
        "followed.leaves_gap(item.after)",
        _NEVER,
    ),
    RemovedRule(
        "an unavailable subscription is asked for again",
        Delivery,
        "_take_live",
        'reason == "unavailable"',
        _NEVER,
        True,
    ),
    RemovedRule("a removed member asks no more", Delivery, "_take_live", 'reason == "unavailable"', "True"),
    RemovedRule(
        "what was lost before the end is asked for", Delivery, "_take_live", "followed.leaves_gap(after)", _NEVER
    ),
    RemovedRule(
        "a subscribe without an answer is sent again",
        Delivery,
        "_subscribe",
        "now_ms + self._config.answer_timeout_ms",
        "None",
        True,
    ),
    RemovedRule("numbers that were named must come", Delivery, "_watch", "if followed.is_missing_some", "if False"),
    RemovedRule("what repeats is no progress", Delivery, "_show", "elif parts or followed.due_ms is None:", "else:"),
    RemovedRule("without progress comes a pause", Delivery, "_ask_again", "followed.tries == 0", "True"),
    RemovedRule("progress ends the pauses", FollowedConversation, "take", "self.tries = 0", "pass"),
    RemovedRule("a refusal for now is asked again", Delivery, "_be_denied", "may_be_retried(item.status)", _NEVER),
    RemovedRule("a refusal for good is not", Delivery, "_be_denied", "may_be_retried(item.status)", "True"),
    RemovedRule(
        "a refused subscribe waits as long as it is told",
        Delivery,
        "_be_denied",
        "min(item.retry_after_ms, self._config.reconnect_ms_max)",
        "0",
    ),
    RemovedRule("a conversation's pause has jitter", Delivery, "_pause", "self._random()", "1.0"),
    RemovedRule("a connection's pause has jitter", Link, "lose", "self._random()", "1.0"),
    RemovedRule(
        "pauses double",
        delivery_conversation,
        "jittered_pause_ms",
        "pause_ms_min << min(tries, _DOUBLINGS_MAX)",
        "pause_ms_min",
    ),
    RemovedRule("pauses have a maximum", delivery_conversation, "jittered_pause_ms", "min(pause_ms_max, ", "max(0, "),
    RemovedRule(
        "the back-off ends only after a connection has held",
        Link,
        "_has_held",
        " and now_ms - self._began_at_ms >= self._config.hold_ms",
        "",
    ),
    RemovedRule("the back-off ends after a connection has held", Link, "lose", "self.tries = 0", "pass"),
    RemovedRule("a close for too much slows down", Link, "lose", "code not in _SLOWER_CODES and ", ""),
    RemovedRule(
        "drain's moment is waited for", Link, "lose", " if self._drain_at_ms is None else self._drain_at_ms", ""
    ),
    RemovedRule("at drain's moment it comes back", Link, "is_drained", "now_ms >= self._drain_at_ms", _NEVER),
    RemovedRule(
        "what a server asks for is bounded",
        Link,
        "_bounded_ms",
        "min(pause_ms, self._config.reconnect_ms_max)",
        "pause_ms",
    ),
    RemovedRule("the server says how long to stay away", Link, "hold_off", "now_ms + self._bounded_ms(pause_ms)", "0"),
    RemovedRule("silence for two intervals is death", Link, "is_silent", ">= 2 * self._ping_interval_ms", "< 0"),
    RemovedRule("silence for one is pinged", Link, "timer_at_ms", "(2 if self._pinged else 1)", "2"),
    RemovedRule("a sign of life ends the silence", Link, "hear", "self._heard_at_ms = now_ms", "pass"),
    RemovedRule(
        "no welcome in time is no connection",
        Link,
        "timer_at_ms",
        "self._began_at_ms + self._config.connect_timeout_ms",
        "None",
        True,
    ),
    RemovedRule("a token that is not taken ends all", Link, "verdict", "code == _CODE_TOKEN", _NEVER),
    RemovedRule(
        "one that has expired does not",
        Link,
        "verdict",
        "code == _CODE_TOKEN and self.phase is LinkPhase.CONNECTING",
        "code == _CODE_TOKEN",
    ),
    RemovedRule("a malformed frame before the welcome ends all", Link, "verdict", "code == _CODE_MALFORMED", _NEVER),
    RemovedRule(
        "a malformed frame after it does not",
        Link,
        "verdict",
        "code == _CODE_MALFORMED and self.phase is LinkPhase.CONNECTING",
        "code == _CODE_MALFORMED",
    ),
    RemovedRule("the wrong kind of frame ends all", Link, "verdict", "400 if code ==", "None if code =="),
    RemovedRule(
        "a subscribe that was out when a frame was malformed is doubted", Delivery, "closed", "self._book.doubt()", "()"
    ),
    RemovedRule("only malformed frames make doubts", Link, "is_malformed", "code == _CODE_MALFORMED and ", ""),
    RemovedRule("a frame that is late makes no doubts", Link, "is_malformed", " and not is_for_now", ""),
    RemovedRule("one doubt is none", FollowedBook, "doubt", ">= _DOUBTS_MAX", ">= 1"),
    RemovedRule("an answer ends doubts", FollowedBook, "answered", "followed.doubts = 0", "pass"),
    RemovedRule(
        "an expiring token is renewed", Delivery, "_take", "self._out.append(items.Renew(self.link.conn))", "pass"
    ),
    RemovedRule("what is held is not asked for", Delivery, "item", "if followed.phase is FollowPhase.IDLE", "if True"),
    RemovedRule(
        "held stays held over a reconnect",
        FollowedConversation,
        "disconnect",
        "self.phase is not FollowPhase.HELD",
        "True",
    ),
    RemovedRule(
        "who listens passively gets no messages", Delivery, "_take_live", "if not followed.passive:", "if True:"
    ),
    RemovedRule("a head never goes back", FollowedConversation, "is_newer_head", "return False", "return True"),
    RemovedRule("only who listens passively gets heads", Delivery, "_take_live", "if followed.passive and ", "if "),
    RemovedRule(
        "what is paused is unsubscribed, too",
        Delivery,
        "_unsubscribe",
        "(FollowPhase.IDLE, FollowPhase.HELD)",
        "(FollowPhase.IDLE, FollowPhase.HELD, FollowPhase.PAUSED)",
    ),
]


@contextmanager
def removed(rule: RemovedRule) -> Iterator[None]:
    """With one rule removed."""
    found = inspect.getattr_static(rule.owner, rule.method)
    function = found.fget if isinstance(found, property) else found
    source = inspect.getsource(function)
    assert source.count(rule.old) == 1, f"{rule.rule}: {rule.old!r} stands {source.count(rule.old)} times"
    changed = source.replace(rule.old, rule.new)
    if changed.startswith(" "):  # a method, as it stands in its class
        changed = "if True:\n" + changed
    names: dict[str, Any] = {}
    module = sys.modules[function.__module__]
    compiled = compile("from __future__ import annotations\n" + changed, f"<without: {rule.rule}>", "exec")
    exec(compiled, vars(module), names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rule.owner, rule.method, names[rule.method])
        if rule.owner is delivery_conversation:  # a function that others have imported by its name
            for user in ("imray.core.delivery", "imray.core.delivery_link"):
                patch.setattr(sys.modules[user], rule.method, names[rule.method])
        yield
