"""Values and a session without a device, for tests of what happens around measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.codec import SCHEMA
from harness.core.types import (
    Artifact,
    Block,
    Cell,
    Device,
    FormatName,
    Job,
    MemoryMark,
    Plan,
    Progress,
    Record,
    RunInfo,
    Runtime,
)

PLAN = Plan(blocks=4, memory_blocks=2)
RECIPES = ("fp32", "int8", "pruned")
UTC = "2026-01-02T03:04:05Z"


def cell(recipe: str) -> Cell:
    return Cell(device="local", model="m", recipe=recipe, format="onnx", threads=1, backend="cpu")


def artifact(recipe: str) -> Artifact:
    return Artifact(
        path=f"/models/{recipe}.onnx",
        format="onnx",
        sha256="0" * 64,
        bytes=1000,
        gzip_bytes=900,
        model="m",
        recipe=recipe,
        seed=0,
        model_digest="d",
        recipe_digest=recipe,
        inputs=(),
        outputs=(),
        check_path=f"/models/{recipe}.ebt",
        check_sets=1,
        check_min_sqnr_db=60.0,
        exporter={},
    )


def record(recipe: str, plan: Plan = PLAN) -> Record:
    return Record(
        schema=SCHEMA,
        run="night",
        cell=cell(recipe),
        status="interrupted",
        reason="not measured yet",
        created_utc=UTC,
        plan=plan,
        artifact=artifact(recipe),
        device={},
        host={},
        runtime=None,
    )


def info() -> RunInfo:
    cells = tuple(map(cell, RECIPES))
    return RunInfo(schema=SCHEMA, name="night", created_utc=UTC, cells=cells, plan=PLAN, request={}, host={})


def block(job: Job, index: int) -> Block:
    mark = MemoryMark(name="steady", peak_rss_bytes=9, rss_bytes=8, anon_bytes=4, file_bytes=4, swap_bytes=0)
    timed = job.kind == "latency"
    return Block(
        kind=job.kind,
        index=index,
        started_utc=UTC,
        load_ns=10,
        first_inference_ns=20,
        values_ns=(1000 + index,) * 5 if timed else (),
        marks=() if timed else (mark,),
    )


JOB = Job(
    kind="latency",
    format="onnx",
    backend="cpu",
    model="m.onnx",
    check="m.ebt",
    check_sets=1,
    check_min_sqnr_db=60.0,
    threads=1,
    warmup_iterations=1,
    warmup_time_s=0.0,
    min_iterations=1,
    min_time_s=0.0,
    timeout_s=1.0,
)


class FakeSession:
    """A session whose blocks come from a function; remembers what was run, in order."""

    facts: Mapping[str, Any] = {"model": "a fake"}

    def __init__(self, device: Device, act: Callable[[Job, int], Block]) -> None:
        self.device = device
        self.ran: list[tuple[str, str, int]] = []
        self._act = act

    def runtime(self, format_name: FormatName) -> Runtime:
        return Runtime(name=format_name, version="1", engine="native")

    def push(self, path: Path, *, sha256: str | None = None) -> str:
        return str(path)

    def incidents(self) -> list[str]:
        return []

    def reconnect(self) -> None:
        raise AssertionError("no link is lost here")

    def run(self, job: Job, index: int) -> Block:
        self.ran.append((Path(job.model).stem, job.kind, index))
        return self._act(job, index)


def opener(session: FakeSession) -> Callable[[Device, object], Any]:
    """What replaces open_session, so that measuring gets *session*."""

    @contextmanager
    def open_session(device: Device, _conduct: object) -> Iterator[FakeSession]:
        assert device == session.device
        yield session

    return open_session


class Lines:
    """A reporter that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[Progress] = []
        self.said: list[str] = []

    def __call__(self, event: Progress) -> None:
        self.events.append(event)

    def say(self, text: str) -> None:
        self.said.append(text)
