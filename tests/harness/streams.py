"""What well-behaved agents say, event by event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.core import events
from harness.core.types import Block, Job

JOB = Job(
    kind="latency",
    format="onnx",
    backend="cpu",
    model="m.onnx",
    check="c.ebt",
    check_sets=2,
    check_min_sqnr_db=40.0,
    threads=1,
    warmup_iterations=1,
    warmup_time_s=0.0,
    min_iterations=3,
    min_time_s=0.0,
    timeout_s=30.0,
)
MEMORY = replace(JOB, kind="memory", warmup_iterations=0)
HELLO: dict[str, Any] = {
    "event": "hello",
    "protocol": 1,
    "agent": "python",
    "pid": 1,
    "runtime": "onnxruntime",
    "version": "1.2.3",
}
START: list[dict[str, Any]] = [
    HELLO,
    {"event": "fact", "name": "clear_refs", "value": None, "reason": "not permitted"},
    {"event": "span", "name": "load", "ns": 1000},
    {"event": "span", "name": "first_inference", "ns": 200},
    {"event": "setting", "name": "threads", "requested": 1, "observed": 1},
]
CHECK = {"event": "check", "sqnr_db": 120.5, "max_abs": 1e-6, "sets": 2}
END = {"event": "end", "status": "ok"}
LATENCY_EVENTS: list[dict[str, Any]] = [
    *START,
    CHECK,
    {"event": "fact", "name": "state_before", "value": {"load_average_1min": 0.5}},
    {"event": "warmup", "ns": [150]},
    {"event": "value", "ns": [100, 101]},
    {"event": "value", "ns": [102]},
    {"event": "span", "name": "steady", "ns": 400, "cpu_ns": 390, "iterations": 3},
    END,
]


def mark(name: str, peak: int = 100, rss: int = 90) -> dict[str, Any]:
    sizes = {"peak_rss_bytes": peak, "rss_bytes": rss, "anon_bytes": 50, "file_bytes": 40, "swap_bytes": 0}
    return {"event": "mark", "name": name, **sizes}


MEMORY_EVENTS: list[dict[str, Any]] = [*START, *map(mark, events.MARKS), CHECK, END]


def lines(told: Sequence[dict[str, Any]]) -> list[str]:
    return [json.dumps(event) for event in told]


def read(told: Sequence[dict[str, Any]], job: Job = JOB) -> Block:
    return events.read_block(lines(told), job, index=4, started_utc="2026-01-02T03:04:05Z")
