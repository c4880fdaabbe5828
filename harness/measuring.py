"""One device, many cells: interleaved blocks, each in a fresh agent process, each stored when it ends."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import retrying, unpacking
from harness.core import fingerprint, units
from harness.core.codec import SCHEMA
from harness.core.errors import CellError, DeviceError, SupervisorError, UsageError
from harness.core.types import (
    Artifact,
    BlockKind,
    Cell,
    Device,
    Failure,
    Incident,
    Job,
    Plan,
    Progress,
    Record,
    Status,
)
from harness.session import Conduct, Session, open_session
from harness.store import RunFolder, utc_now


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One block to run: which cell, which kind, which number."""

    record: int  # index into the device's records
    kind: BlockKind
    index: int

    def __str__(self) -> str:
        return f"{self.kind} {self.index + 1}"


def schedule(cells: int, plan: Plan) -> list[Slot]:
    """
    The order of all blocks of *cells* cells on one device.

    Latency rounds come first. Each round runs every cell once, in a seeded random order that the next
    round runs backwards (A B B A), so a steady drift of the device weighs on all cells alike. Memory
    blocks follow: they are not timed.
    """
    order = list(range(cells))
    generator = random.Random(plan.order_seed)
    slots = []
    for index in range(plan.blocks):
        if index % 2 == 0:
            generator.shuffle(order)
        slots += [Slot(record=cell, kind="latency", index=index) for cell in order]
        order.reverse()
    return slots + [
        Slot(record=cell, kind="memory", index=index)
        for index in range(plan.memory_blocks)
        for cell in range(cells)
    ]


def new_record(
    run: str, cell: Cell, plan: Plan, artifact: Artifact | Failure, host: Mapping[str, Any]
) -> Record:
    """The record of a cell before anything is measured: ``interrupted``, or why there is no file."""
    failure = artifact if isinstance(artifact, Failure) else None
    return Record(
        schema=SCHEMA,
        run=run,
        cell=cell,
        status=failure.status if failure else "interrupted",
        reason=failure.reason if failure else "not measured yet",
        created_utc=utc_now(),
        plan=plan,
        artifact=artifact if isinstance(artifact, Artifact) else None,
        device={},
        host=host,
        runtime=None,
    )


def measure(
    device: Device,
    records: Sequence[Record],
    folder: RunFolder,
    report: Callable[[Progress], None],
    conduct: Conduct | None = None,
) -> list[Record]:
    """
    Measure the cells of *records* on *device* and store each record after every block.

    Blocks that a record already has are not run again. A cell that fails gets its typed reason and the
    others go on; a device that cannot be reached, or that somebody else holds, gives every open cell that
    reason.
    """
    current = list(records)

    def keep(index: int, record: Record) -> None:
        current[index] = record
        folder.save(record)

    todo = [i for i, record in enumerate(current) if record.status == "interrupted"]
    if not todo:
        return current
    conduct = conduct or Conduct()
    try:
        with open_session(device, conduct) as session:
            for index in todo:
                keep(index, _attach(current[index], session))
            _run_blocks(session, current, keep, report)
    except (DeviceError, CellError) as error:
        conduct.check()  # a device that was let go of because the user wants to stop is not lost
        status = _status(error)
        for index in todo:
            if current[index].status == "interrupted":
                keep(index, _failed(current[index], status, str(error)))
    return current


def _status(error: DeviceError | CellError) -> Status:
    if isinstance(error, CellError):
        return error.status
    # A refusal of our own program there (no space, a read-only disk) comes from a device that is not lost.
    return "not_ready" if isinstance(error, SupervisorError) else "lost_device"


def _attach(record: Record, session: Session) -> Record:
    """
    The record with what the device and its runtime are; failed when there is no such runtime.

    UsageError when it has blocks of another device or runtime: they would be one cell of unlike things.
    """
    try:
        runtime = session.runtime(record.cell.format)
    except CellError as error:
        return _failed(record, error.status, str(error))
    if record.blocks:
        before = {**record.device, "runtime": record.runtime}
        now = {**session.facts, "runtime": runtime}
        if changed := fingerprint.differences(before, now):
            name = changed[0]
            raise UsageError(
                f"{record.cell.id} was begun with another {name}: {before.get(name)}, now {now.get(name)}.",
                hint="Start the run again under a new name.",
            )
    return replace(record, device=dict(session.facts), runtime=runtime)


def sha256_of(path: str) -> str | None:
    """The hash of a file's content; None if it is not there."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _run_blocks(
    session: Session,
    current: Sequence[Record],
    keep: Callable[[int, Record], None],
    report: Callable[[Progress], None],
) -> None:
    plan = current[0].plan
    slots = [slot for slot in schedule(len(current), plan) if not _has(current[slot.record], slot)]
    stage = f"measure on {session.device.name}"
    for number, slot in enumerate(slots):
        record = current[slot.record]
        cell = record.cell
        note = f"{cell.recipe} {cell.format} {cell.threads} thread(s), block {slot}"
        report(Progress(stage=stage, done=number, total=len(slots), note=note))
        if record.status != "interrupted":
            continue
        incidents: list[Incident] = []
        try:
            record = _run_block(session, record, slot, incidents)
        finally:  # also where the device is lost for good: what was tried is told
            keep(slot.record, _with_incidents(record, incidents, session, slot))
    report(Progress(stage=stage, done=len(slots), total=len(slots), note=""))


def _has(record: Record, slot: Slot) -> bool:
    return any(block.kind == slot.kind and block.index == slot.index for block in record.blocks)


def _run_block(session: Session, record: Record, slot: Slot, incidents: list[Incident]) -> Record:
    """The record with one block more, or failed; what went wrong and was tried again is in *incidents*."""
    try:
        block = retrying.until_done(
            lambda: session.run(_job(session, record, slot.kind), slot.index),
            mend=session.reconnect,
            block=str(slot),
            incidents=incidents,
        )
    except CellError as error:
        return _failed(record, error.status, str(error))
    blocks = (*record.blocks, block)
    wanted = record.plan.blocks + record.plan.memory_blocks
    if len(blocks) == wanted:
        return replace(record, blocks=blocks, status="measured", reason=None)
    return replace(record, blocks=blocks, reason=f"stopped after {len(blocks)} of {wanted} blocks")


def _with_incidents(record: Record, tried: Sequence[Incident], session: Session, slot: Slot) -> Record:
    healed = [
        Incident(kind="reconnected", utc=utc_now(), block=str(slot), text=text)
        for text in session.incidents()
    ]
    return replace(record, incidents=(*record.incidents, *tried, *healed))


def _job(session: Session, record: Record, kind: BlockKind) -> Job:
    artifact, plan = record.artifact, record.plan
    if artifact is None:
        raise CellError("build_failed", "There is no file to run.")
    timed = kind == "latency"
    model, unpacked = unpacking.push_model(session, artifact)
    return Job(
        kind=kind,
        format=record.cell.format,
        backend=record.cell.backend,
        model=model,
        check=session.push(Path(artifact.check_path)),
        check_sets=artifact.check_sets,
        check_min_sqnr_db=artifact.check_min_sqnr_db,
        threads=record.cell.threads,
        warmup_iterations=plan.warmup_iterations if timed else 0,
        warmup_time_s=plan.warmup_time_s if timed else 0.0,
        min_iterations=plan.min_iterations,
        min_time_s=plan.min_time_s if timed else 0.0,
        timeout_s=plan.timeout_s,
        unpacked=unpacked,
    )


def _failed(record: Record, status: Status, reason: str) -> Record:
    return replace(record, status=status, reason=reason)


def summary(device: Device, records: Sequence[Record]) -> str:
    """What came of a device, in one line: ``pi5: measured 9 of 12 cells; 3 lost_device: It is off.``"""
    measured = sum(record.status == "measured" for record in records)
    parts = [f"{device.name}: measured {measured} of {len(records)} cells"]
    failed: dict[tuple[str, str], int] = {}
    for record in records:
        if record.status != "measured":
            key = (record.status, record.reason or "")
            failed[key] = failed.get(key, 0) + 1
    parts += [f"{count} {status}: {reason}" for (status, reason), count in failed.items()]
    mended = [i for record in records for i in _mended(record)]
    if kinds := Counter(incident.kind for incident in mended):
        earlier = units.counted(len(mended), "earlier trouble")
        was = "was" if len(mended) == 1 else "were"
        told = ", ".join(f"{count} {name}" for name, count in kinds.items())
        parts.append(f"{earlier} {was} mended: {told}")
    return "; ".join(parts)


def _mended(record: Record) -> list[Incident]:
    """Its incidents that passed: their block was run after all."""
    done = {str(Slot(record=0, kind=block.kind, index=block.index)) for block in record.blocks}
    return [i for i in record.incidents if i.kind != "lost" and i.block in done]


def reopened(records: Iterable[Record]) -> list[Record]:
    """Records for --resume: what was cut short or lost its device is open again, with its blocks."""
    again = {"interrupted", "lost_device", "timeout", "agent_failed", "push_failed", "not_ready"}
    return [
        replace(r, status="interrupted", reason="not measured yet") if r.status in again and r.artifact else r
        for r in records
    ]
