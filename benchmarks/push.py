"""Live delivery over WebSocket: what does a gateway process carry, and what does that cost it?"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial

from benchmarks.harness import Figure, Options, Sample, column, in_turns, ratios
from benchmarks.push_cut import CONNECTIONS, CONNECTIONS_QUICK, cut_at_once
from benchmarks.push_sides import (
    FRAME_ROWS,
    GROUP,
    Measured,
    beside_the_deaf,
    deliveries,
    memory,
    one_group,
    send_to_push,
    sends,
    single_sends,
    small_groups,
)
from benchmarks.push_wire import JSON, MSGPACK
from benchmarks.servers import imray

QUESTION = "sends and deliveries over WebSocket, through one gateway: rates, its CPU, frames; what cut and deaf ones do"
_DEAF = 5
_ENVIRONMENT = {"IMRAY_CONNECTIONS_MAX": "20000", "IMRAY_CONNECTIONS_PER_PEER_MAX": "20000"}
"""All connections come from one address, and 10,000 of them at once."""
Samples = Mapping[str, list[Sample]]


def run(options: Options) -> list[Figure]:
    """Every side in turns, on one system with default settings: what is measured as a rate and what is measured as a
    latency gather messages alike."""
    os.environ.update(_ENVIRONMENT)
    with imray(options) as server:
        on = Measured(server, options)
        sides: dict[str, Callable[[], Sample]] = {
            "sends json": partial(sends, on, JSON),
            "sends msgpack": partial(sends, on, MSGPACK),
            "single sends": partial(single_sends, on),
            "deliveries": partial(deliveries, on),
            "one group": partial(one_group, on),
            "send to push": partial(send_to_push, on),
            "small groups": partial(small_groups, on),
            "all read": partial(beside_the_deaf, on, 0),
            "some deaf": partial(beside_the_deaf, on, _DEAF),
            "memory": partial(memory, options),
            "cut": partial(cut_at_once, on),
        }
        turns = in_turns(sides, options.repeat)
    many = f"{on.listeners:,}"
    figures = [
        *_rate("acked sends, JSON frames of up to 50", turns["sends json"], "acks"),
        *_rate("acked sends, MessagePack frames of up to 50", turns["sends msgpack"], "acks"),
        *_rate(f"acked sends, one a frame, {many} connections", turns["single sends"], "acks"),
        *_rate(f"deliveries to {many} listeners of one conversation", turns["deliveries"], "told"),
        *_rate(f"deliveries, one message a frame, one group of {many}", turns["one group"], "told"),
        *_rate(f"deliveries, one message a frame, groups of {GROUP}", turns["small groups"], "told"),
    ]
    return [*figures, *_latencies(turns, on.listeners), *_others(turns, options)]


def _rate(name: str, samples: list[Sample], kind: str) -> list[Figure]:
    """A rate, the frames that it took, and what the gateway used; the generator's share says whose limit it was."""
    rates = column(samples, f"{kind}_per_s")
    cpu = column(samples, "gateway_cpu")
    unit = "acks/s" if kind == "acks" else "messages/s"
    made = [
        Figure(name, unit, rates),
        Figure(f"{name}: frames", "frames/s", column(samples, "frames_per_s"), note=_frames_note(kind)),
        Figure(f"{name}: gateway", "CPU s/million", [1e6 * used / rate for used, rate in zip(cpu, rates, strict=True)]),
        Figure(f"{name}: gateway", "cores", cpu),
        Figure(f"{name}: p99", "ms", column(samples, "p99_ms"), more_is_better=False),
        Figure(f"{name}: load generator", "cores", column(samples, "generator_cpu")),
    ]
    if kind == "told" and any(column(samples, "behind")):
        made.append(Figure(f"{name}: notices that a listener is behind", "", column(samples, "behind")))
    return made


def _frames_note(kind: str) -> str:
    return f"of up to {FRAME_ROWS} sends, as sent" if kind == "acks" else "as told"


def _latencies(turns: Samples, listeners: int) -> list[Figure]:
    """From send to push, and what listeners that do not read do to the others."""
    half = turns["send to push"]
    paced = [told / listeners for told in column(half, "told_per_s")]
    reading = column(turns["all read"], "p99_ms")
    beside = column(turns["some deaf"], "p99_ms")
    return [
        Figure("send to push at half the rate of the one group: that rate", "messages/s", paced, note="to each"),
        Figure("send to push at half the rate of the one group: p50", "ms", column(half, "p50_ms")),
        Figure("send to push at half the rate of the one group: p99", "ms", column(half, "p99_ms")),
        Figure("send to push at half the rate of the one group: gateway", "cores", column(half, "gateway_cpu")),
        Figure("send to push of 100 listeners, all read: p99", "ms", reading),
        Figure(f"send to push of 100 listeners beside {_DEAF} that never read: p99", "ms", beside),
        Figure("the same, beside / all read", "ratio", ratios(beside, reading), more_is_better=False),
    ]


def _others(turns: Samples, options: Options) -> list[Figure]:
    """Memory, and the cut."""
    cut = turns["cut"]
    many = f"{CONNECTIONS_QUICK if options.quick else CONNECTIONS:,} connections cut at once"
    return [
        Figure("an idle connection", "KiB", column(turns["memory"], "idle"), note="growth of the gateway's RSS"),
        Figure(
            "a connection that listens to a quiet conversation of its own", "KiB", column(turns["memory"], "listening")
        ),
        Figure(f"{many}: half of them current again", "s", column(cut, "p50_s")),
        Figure(f"{many}: all current again", "s", column(cut, "all_s"), 20.0, more_is_better=False),
        Figure(f"{many}: connections made for each", "", column(cut, "tries")),
        Figure(f"{many}: log reads", "reads/conversation", column(cut, "reads")),
        Figure(f"{many}: acks to others before, p99", "ms", column(cut, "before_p99_ms")),
        Figure(f"{many}: acks to others during, p99", "ms", column(cut, "during_p99_ms")),
        Figure(f"{many}: acks to others after, p99", "ms", column(cut, "after_p99_ms")),
    ]
