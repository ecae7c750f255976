"""Settings: every bound and interval in one place, each with its reason. Environment: IMRAY_ and the name, capitals."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from imray.core.errors import InvalidError

_FORMER_NAMES = {
    "hot_partitions": "IMRAY_HOT_TOPICS",
    "partition_deadline_s": "IMRAY_TOPIC_DEADLINE_S",
    "partition_pause_s": "IMRAY_TOPIC_PAUSE_S",
    "partition_num_cpus": "IMRAY_TOPIC_NUM_CPUS",
}
_BOOLS = {"0": False, "1": True}
_KB = 1024
_MB = 1024 * _KB
_GB = 1024 * _MB
_DAY_S = 24 * 3600

_ANY = (0, 2**63 - 1)
"""What has no bounds of its own: beyond it a number fits no 64 bits, which is what files, Arrow and Ray have."""
BOUNDS: Mapping[str, tuple[float, float]] = {
    "checkpoint_wait_s": (0.1, _DAY_S),
    "checkpoint_segments_min": (1, 1_000_000),
    "merge_interval_s": (0.01, 3600),
    "merge_step_bytes_max": (_MB, 4 * _GB),
    "run_file_bytes": (64 * _KB, _GB),
    "run_group_bytes": (4 * _KB, 16 * _MB),
    "read_s_max": (0.05, _DAY_S),
    "pin_s_max": (1, _DAY_S),
    "orphan_s": (60, 30 * _DAY_S),
    "history_cache_bytes": (_MB, 64 * _GB),
}
"""The least and the most that the environment may say of what the merging of a whole deployment rests on. Below, a
merger stands still, turns over in vain, or takes what another one is about to commit for an orphan; above, memory and
timers give out. A program that makes `Settings` itself may use others, as tests do with tiny ones."""


@dataclass(frozen=True)
class Settings:
    """Defaults serve a laptop and a first cluster alike; units stand last in the names."""

    body_bytes_max: int = 64 * 1024
    """A chat message, not a file."""
    batch_messages_max: int = 10_000
    """In one request over HTTP: about 1 MB of Arrow at 100-byte bodies."""
    request_bytes_max: int = 16 * 1024 * 1024
    """A whole HTTP request: it is held in memory."""
    history_limit_max: int = 10_000
    history_limit_default: int = 100
    history_bytes_max: int = 32 * 1024 * 1024
    """Bodies in one history answer: it is held in memory; the rest follows under `next`."""

    commit_rows_max: int = 65_536
    commit_bytes_max: int = 8 * 1024 * 1024
    """One segment: large enough that fsync is a small part of it, small enough to encode in a few ms."""
    rows_to_plan_ahead: int = 4000
    """While a put is in flight the next commit is planned and encoded only if so many messages wait: fewer are better
    off in one larger commit."""
    rows_at_once_max: int = 256
    """Up to so many messages a commit is planned and encoded where it arrives, in well under a millisecond: that spares
    two ways to another thread and back (40 us of CPU each alone, 100 beside other work)."""
    shard_queue_rows_max: int = 400_000
    shard_queue_bytes_max: int = 128 * 1024 * 1024
    """What waits in a shard for its commit; beyond it senders are told to come back."""

    gateway_queue_rows_max: int = 100_000
    gateway_queue_bytes_max: int = 64 * 1024 * 1024
    """What waits in a gateway for one shard."""
    gateway_calls_in_flight_max: int = 3
    gateway_rows_for_another_call: int = 4000
    """A call costs both sides about 1 ms, however full it is, so a second one starts beside the first only when so many
    messages wait: with two always in flight 64 connections sent a third less, and JSON batches of 500 went a fifth
    faster at 4000 than at 250."""
    call_rows_max: int = 20_000
    call_bytes_max: int = 4 * 1024 * 1024
    """What one call carries; a single larger batch goes alone."""
    send_deadline_s: float = 15.0
    """How long a gateway retries for a sender; a shard restarts in 2 to 5 s."""
    call_timeout_s: float = 10.0
    """One try of a call or of a batch; past it the outcome is unknown and the same ids are sent again."""
    retry_delay_s_min: float = 0.05
    retry_delay_s_max: float = 1.0

    checkpoint_segments_max: int = 1000
    checkpoint_ids_max: int = 1_800_000
    """A checkpoint after so many segments or ids: recovery replays at most that (about a second), and recent ids cost
    80 to 140 bytes of memory each (with a margin below 2^21, where their table doubles). Every new id is looked up in
    one filter a checkpoint (a merge makes one of four), so more of them cost time."""
    checkpoint_wait_s: float = 20.0
    checkpoint_segments_min: int = 50
    """A checkpoint also when so many segments have waited so long: what it covers can be merged, and deleted."""
    reopen_delay_s_max: float = 5.0
    """Between tries of a shard that cannot write (disk full) to become the writer again."""
    put_timeout_s: float = 60.0
    """After an error a put that is on its way must return before the log is opened anew; past it the process ends, and
    its successor opens."""

    merge: bool = True
    """Merge the log into the history, in processes of their own. IMRAY_MERGE=0: every commit leaves a file for ever."""
    merge_interval_s: float = 1.0
    """How often a merger looks whether a shard has a new checkpoint."""
    merge_step_bytes_max: int = 128 * 1024 * 1024
    """Segments that become one run, or a part of a run that is sorted at once: a merger takes about four times as much
    memory."""
    run_file_bytes: int = 32 * 1024 * 1024
    """A file of a run, about: its footer is read whole before a page of it."""
    run_group_bytes: int = 128 * 1024
    """A row group of a run, about: the least that is read and verified for a message."""
    read_s_max: float = 20.0
    """No reader without a pin reads longer: what a merge replaced is deleted after so long."""
    pin_s_max: float = 60.0
    """A pin that is not renewed for so long is of a reader that died."""
    orphan_s: float = 3600.0
    """A run that no commit names after so long is of a merge that died."""

    hot_rate_per_s: float = 0.0
    """A conversation with so many messages a second for `hot_ticks` seconds is spread over `hot_partitions` partitions;
    0: none is. See docs/hot-groups.md for when it pays: it takes a cluster with cores to spare."""
    cold_rate_per_s: float = 0.0
    """Under it for `hot_ticks` seconds, what turned hot by its rate turns cold; 0: a quarter of `hot_rate_per_s`."""
    hot_ticks: int = 5
    hot_partitions: int = 4
    grant_timeout_s: float = 2.0
    """A partition that has not written a block after so long is fenced, and its block settled by reading its log: its
    group's `stable_seq` moves again within 10 s. A commit takes milliseconds."""
    partition_deadline_s: float = 2.5
    """How long a gateway asks a partition before it sends to the home shard, which takes everything."""
    partition_pause_s: float = 5.0
    """How long a partition that gave no answer is left out."""

    store_put_delay_s: float = 0.0
    """For experiments: every put takes so much longer, as over an object store."""

    conversations_open: bool = True
    """Any caller may send to, read and listen to a conversation that nobody created. IMRAY_CONVERSATIONS_OPEN=0: only
    a service may read it, and nobody may send before it is created."""

    # Feeds: what a gateway tells its listeners
    feeds_max: int = 100_000
    """Conversations that a gateway tells of: about 3 KB each, beside their last batches."""
    feed_bytes_max: int = 4 * 1024 * 1024
    """The last batches of one conversation, and what they became for listeners: who was away for a moment needs no
    read. Some 10,000 messages of chat."""
    feeds_bytes_max: int = 256 * 1024 * 1024
    """The same of all conversations of a gateway."""
    catch_up_bytes_max: int = 64 * 1024 * 1024
    """Pages of history that a gateway remembers, since those who come back together want the same ones."""
    feed_idle_s: float = 30.0
    """A conversation that nobody listens to any more is told on for so long: its listeners may be on their way back."""

    # The door
    header_bytes_max: int = 64 * 1024
    header_lines_max: int = 100
    """Of one request. Each line costs 150 bytes of memory beside its own: 64 KB of empty ones would take 2 MB."""
    url_bytes_max: int = 8 * 1024
    """Path and query: the longest names, encoded, take a tenth."""
    header_deadline_s: float = 10.0
    """From the connection, or the first byte of a later request, to the end of the headers."""
    request_deadline_s: float = 30.0
    """From there to the end of the body: the largest one needs 5 Mbit/s."""
    write_deadline_s: float = 10.0
    write_bytes_per_s_min: int = 16 * 1024
    """Who takes less of its answer in `write_deadline_s` is cut off."""
    connections_max: int = 4096
    connections_per_peer_max: int = 1024
    """From one address (IPv6: one /64): no single one can take all. Room for a network behind one address; raise it to
    `connections_max` where a load balancer stands in front and bounds its clients itself."""
    requests_at_once_max: int = 4096
    """In work in one gateway. Health passes this and the bounds of connections."""
    flight_bytes_max: int = 512 * 1024 * 1024
    flight_bytes_per_caller_max: int = 128 * 1024 * 1024
    """Bodies that arrive and answers that are not read yet, of a gateway and of one caller (a token's subject; before
    it is known, an address): eight of the largest requests, or two of the largest pages."""

    # Live
    live_frame_bytes_max: int = 1024 * 1024
    """What a client may say in one WebSocket message: fifteen of the largest bodies. It is held in memory, once for
    each connection that is in the middle of one."""
    live_items_max: int = 1000
    """In one frame, both ways: what a frame starts is bounded by it."""
    live_subscriptions_max: int = 1000
    """Of one connection: each is a few hundred bytes here and an entry in a shard."""
    live_subscribes_per_s: float = 200.0
    live_subscribes_burst: int = 2000
    """Subscriptions that one caller (a token's subject without the role `service`) makes, over all its connections and
    streams: on average, and at once, which is two devices that come back with all that they may have. Each new
    conversation is a feed here for `feed_idle_s`: 200 a second hold 8,000 of `feeds_max`. 0: no limit."""
    listener_queue_bytes_max: int = 1024 * 1024
    """What may wait unsent for one listener: seconds of a busy conversation. Beyond it the listener is told from where
    to go on, and its neighbours notice nothing."""
    live_ping_interval_s: float = 20.0
    """A connection that said nothing for so long is pinged, and closed after as long again: load balancers forget an
    idle connection after 60 s."""
    live_signals_per_s: float = 20.0
    """Of one connection, and as many at once: a person who types makes two. Each goes to everybody who listens. 0: no
    limit."""
    live_sends_in_flight_max: int = 2000
    """Of one connection, two of the largest frames: it is not read from before some of them are answered."""
    live_pulls_in_flight_max: int = 4
    """Of one connection: more would only wait for their turn (`history_turns_per_caller_max`)."""
    live_reconnect_s_max: float = 15.0
    """A gateway that ends deals its connections moments up to here to come back: 4,096 of them are 270 a second."""

    shard_num_cpus: float = 0.1
    partition_num_cpus: float = 0.1
    gateway_num_cpus: float = 0.1
    history_num_cpus: float = 0.1
    """What Ray reserves; small, so that a laptop holds a whole system. Set to 1 on a cluster."""
    duckdb_memory_limit: str = "512MB"
    duckdb_threads: int = 1
    history_cache_bytes: int = 64 * 1024 * 1024
    """Decoded rows that one reader of history keeps: groups of runs, and segments that are not merged yet."""
    history_readers: int = 2
    """Processes that read pages of history, of a whole deployment. One reads page after page on one core: a page of
    32 MB takes it a third of a second, and where many listeners catch up at once all others wait behind it. Each may
    take `history_cache_bytes`. At least 1."""

    # Callers
    jwks_timeout_s: float = 5.0
    """One fetch of the identity provider's keys, from the first byte to the last."""
    jwks_lifespan_s: float = 300.0
    """Keys older than this are fetched again in the background; until that succeeds the old ones serve."""
    jwks_refresh_s_min: float = 5.0
    """Between two fetches, whatever tokens name: unknown keys make no load for the provider."""
    caller_requests_per_s: float = 0.0
    caller_messages_per_s: float = 0.0
    """Of each caller without the role `service`, on average; 0: no limit, as on one machine."""
    caller_burst_s: float = 2.0
    """A caller that was quiet may spend the limit of so many seconds at once."""
    callers_remembered_max: int = 50_000
    """About 200 bytes each; beyond it the one that was silent longest is forgotten."""
    arrow_parts_max: int = 4096
    """IPC messages in one Arrow request: each costs about 30 us to read, however little is in it."""
    ready_interval_s: float = 1.0
    """How old the shards' states in `/readyz` may be: it needs no token, and asks every shard."""
    history_turns_max: int = 3
    """Pulls at once that a gateway reads of one shard; more would only queue in the reader, where order is not fair."""
    history_turns_per_caller_max: int = 2
    """Of them, of one caller."""
    history_waiting_per_caller_max: int = 64
    history_waiting_max: int = 2000
    """Pulls that wait for their turn at one shard; one that waits costs a connection and no more."""
    history_wait_s: float = 10.0
    """Longest wait for a turn."""
    history_pages_bytes_max: int = 256 * 1024 * 1024
    """All pages that are on their way to clients: eight of the largest. One caller may hold a quarter."""
    history_send_timeout_s: float = 60.0
    """A client takes its page in that time and what its size takes at `write_bytes_per_s_min`, or it is left."""

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Settings:
        """The defaults, changed by IMRAY_<NAME> variables. InvalidError for a value of the wrong type, or out of its
        bounds (`BOUNDS`; of others below 0 or beyond 64 bits).

        Names of 0.1 are taken, too, where the new one is not set."""
        changed: dict[str, Any] = {}
        for f in fields(cls):
            name = f"IMRAY_{f.name.upper()}"
            if name not in env:
                name = _FORMER_NAMES.get(f.name, name)
            text = env.get(name)
            if text is None:
                continue
            kind: type = type(getattr(cls, f.name))
            try:
                value = _BOOLS[text] if kind is bool else kind(text)
            except KeyError:
                raise InvalidError(f"{name}={text!r}: 0 or 1") from None
            except ValueError as e:
                raise InvalidError(f"{name}={text!r} is not of type {kind.__name__}") from e
            low, high = BOUNDS.get(f.name, _ANY)
            if isinstance(value, int | float) and not low <= value <= high:
                raise InvalidError(f"{name}={text!r}: a number from {low} to {high}")
            changed[f.name] = value
        return replace(cls(), **changed)
