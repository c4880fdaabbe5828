"""What an agent says becomes a complete block or a typed reason, whatever it says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.core import codec, events
from harness.core.errors import CellError
from harness.core.types import STATUSES, Block, Job
from tests.harness.streams import (
    CHECK,
    END,
    HELLO,
    JOB,
    LATENCY_EVENTS,
    MEMORY,
    MEMORY_EVENTS,
    START,
    lines,
    mark,
    read,
)


def refused(told: Sequence[dict[str, Any]], job: Job = JOB) -> CellError:
    with pytest.raises(CellError) as caught:
        read(told, job)
    return caught.value


def test_a_latency_block() -> None:
    assert read(LATENCY_EVENTS) == Block(
        kind="latency",
        index=4,
        started_utc="2026-01-02T03:04:05Z",
        load_ns=1000,
        first_inference_ns=200,
        warmup_ns=(150,),
        values_ns=(100, 101, 102),
        cpu_ns=390,
        wall_ns=400,
        settings=read(LATENCY_EVENTS).settings,
        facts={
            "clear_refs": None,
            "reasons": {"clear_refs": "not permitted"},
            "state_before": {"load_average_1min": 0.5},
            "agent": "python",
            "runtime_version": "1.2.3",
            "check": {"sqnr_db": 120.5, "max_abs": 1e-6, "sets": 2},
        },
    )
    assert read(LATENCY_EVENTS).settings["threads"].observed == 1


def test_a_memory_block() -> None:
    block = read(MEMORY_EVENTS, MEMORY)
    assert [m.name for m in block.marks] == list(events.MARKS)
    assert block.marks[0].peak_rss_bytes == 100
    assert block.values_ns == ()


def test_a_probe() -> None:
    told = [HELLO | {"runtime": None, "version": None}, {"event": "fact", "name": "cores", "value": 4}, END]
    assert events.read_probe(lines(told)) == {"cores": 4}


@pytest.mark.parametrize("count", range(len(LATENCY_EVENTS)))
def test_a_stream_that_stops_is_never_a_short_result(count: int) -> None:
    error = refused(LATENCY_EVENTS[:count])
    assert error.status == "agent_failed"
    assert "without end" in error.message


@pytest.mark.parametrize("at", range(len(LATENCY_EVENTS) - 1))
def test_no_event_may_be_missing(at: int) -> None:
    told = LATENCY_EVENTS[:at] + LATENCY_EVENTS[at + 1 :]
    if LATENCY_EVENTS[at]["event"] == "fact":
        read(told)
    else:
        assert refused(told).status == "agent_failed"


@pytest.mark.parametrize("at", range(len(MEMORY_EVENTS) - 1))
def test_no_event_of_a_memory_block_may_be_missing(at: int) -> None:
    told = MEMORY_EVENTS[:at] + MEMORY_EVENTS[at + 1 :]
    if MEMORY_EVENTS[at]["event"] == "fact":
        read(told, MEMORY)
    else:
        assert refused(told, MEMORY).status == "agent_failed"


@pytest.mark.parametrize(
    "change",
    [
        {0: {"protocol": 2}},
        {0: {"protocol": "1"}},
        {0: {"runtime": "litert"}},
        {2: {"ns": -1}},
        {2: {"ns": 1.5}},
        {2: {"ns": True}},
        {2: {"name": "first_inference"}},
        {5: {"sets": 1}},
        {5: {"sqnr_db": None}},
        {8: {"ns": [100, -1]}},
        {8: {"ns": [100, 101.0]}},
        {8: {"ns": "100"}},
        {8: {"ns": [100, 10**19]}},
        {10: {"iterations": 4}},
        {10: {"cpu_ns": None}},
        {10: {"ns": 302}},  # shorter than its values
        {11: {"event": "fin"}},
    ],
)
def test_what_does_not_fit_is_refused(change: dict[int, dict[str, Any]]) -> None:
    told = [event | change.get(i, {}) for i, event in enumerate(LATENCY_EVENTS)]
    assert refused(told).status == "agent_failed"


def test_fewer_runs_or_less_time_than_asked_for_is_refused() -> None:
    assert "fewer" in refused(LATENCY_EVENTS, replace(JOB, min_iterations=4)).message
    assert "fewer" in refused(LATENCY_EVENTS, replace(JOB, warmup_iterations=2)).message
    assert "shorter" in refused(LATENCY_EVENTS, replace(JOB, min_time_s=1.0)).message


def test_a_check_below_the_limit_is_wrong_output_though_the_agent_went_on() -> None:
    assert refused(LATENCY_EVENTS, replace(JOB, check_min_sqnr_db=130.0)).status == "wrong_output"


def test_values_before_the_check_are_refused() -> None:
    told = [e for e in LATENCY_EVENTS if e["event"] != "check"]
    assert "before it checked" in refused([*told[:-1], CHECK, END]).message


def test_marks_must_be_possible() -> None:
    for bad in (mark("baseline", peak=80), mark("baseline", rss=0), mark("start")):
        assert refused([*START, bad, *MEMORY_EVENTS[6:]], MEMORY).status == "agent_failed"
    assert refused([*MEMORY_EVENTS[:-1], {"event": "value", "ns": [1]}, END], MEMORY).status == "agent_failed"
    assert refused([*LATENCY_EVENTS[:-1], mark("steady"), END]).status == "agent_failed"


def test_the_agents_own_reason_is_kept() -> None:
    told = {"event": "error", "stage": "load", "status": "unsupported_op", "message": "It lacks Foo"}
    error = refused([*START[:2], told])
    assert (error.status, error.message) == ("unsupported_op", "It lacks Foo.")
    assert refused([told]).status == "unsupported_op"  # even before hello
    for status in ("measured", "splendid"):
        assert refused([HELLO, told | {"status": status}]).status == "agent_failed"


def test_hello_is_said_first_and_once() -> None:
    assert "twice" in refused([HELLO, *LATENCY_EVENTS]).message
    assert "began with span" in refused([LATENCY_EVENTS[2], *LATENCY_EVENTS]).message


def test_what_comes_after_the_end_is_not_read() -> None:
    def stream() -> Iterator[str]:
        yield from lines(LATENCY_EVENTS)
        raise AssertionError("it read on")

    events.read_block(stream(), JOB, index=0, started_utc="")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Segmentation fault",
        "[]",
        "null",
        '"end"',
        '{"event":"end"',
        '{"event":["end"],"status":"ok"}',
        '{"event":"fact","name":"x","value":NaN}',
        '{"event":"fact","name":"x","value":1e999}',
        '{"event":"fact","name":"x","value":"\\ud800"}',
        '{"event":"fact","value":1}',
        '{"event":"fact","name":"x","value":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"event":"span","name":"x","ns":' + "9" * 5000 + "}",
    ],
)
def test_a_line_that_is_no_event_is_shown(line: str) -> None:
    with pytest.raises(CellError, match="no event") as caught:
        list(events.read_events([json.dumps(HELLO), line]))
    assert caught.value.status == "agent_failed"
    assert len(caught.value.message) < 1000
    caught.value.message.encode("ascii")


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=3) | st.lists(st.integers(0, 10), max_size=4)
names = st.sampled_from([*events.FIELDS, *{key for fields in events.FIELDS.values() for key in fields}])
objects = st.dictionaries(names | st.text(max_size=3), values | names, max_size=5)


@st.composite
def spoilt(draw: st.DrawFn) -> list[str]:
    """A good stream with events dropped, doubled, moved, changed, or replaced by nonsense."""
    told: list[Any] = list(draw(st.sampled_from([LATENCY_EVENTS, MEMORY_EVENTS])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(told)))
        how = draw(st.sampled_from(["drop", "double", "swap", "change", "insert", "garbage"]))
        if how == "drop":
            told[at : at + 1] = []
        elif how == "double":
            told[at:at] = told[at : at + 1]
        elif how == "swap":
            told[at : at + 2] = told[at : at + 2][::-1]
        elif how == "insert":
            told.insert(at, draw(objects))
        elif how == "garbage":
            told.insert(at, draw(st.text()))
        elif at < len(told) and isinstance(told[at], dict):
            told[at] = told[at] | {draw(st.sampled_from(list(told[at]) or ["event"])): draw(values)}
    return [event if isinstance(event, str) else json.dumps(event) for event in told]


@settings(max_examples=400, deadline=None)
@given(spoilt() | st.lists(st.text(), max_size=5), st.sampled_from([JOB, MEMORY]))
def test_whatever_comes_is_a_block_or_a_reason(told: list[str], job: Job) -> None:
    """And such a block can be stored and read back."""
    try:
        block = events.read_block(told, job, index=0, started_utc="")
    except CellError as error:
        assert error.status in STATUSES
        assert error.message
        return
    assert codec.from_json(Block, json.loads(codec.dumps(block))) == block
