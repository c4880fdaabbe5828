"""
Read what an agent says (device_agents/PROTOCOL.md), strictly and without I/O.

Lines become events, events become a Block or the facts of a probe. Whatever else comes, even nonsense,
ends as a CellError that says what was found; a stream without ``end`` is an error, never a short result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from harness.core.errors import CellError
from harness.core.types import RUNTIMES, STATUSES, Block, Job, MemoryMark, Setting, Status

PROTOCOL = 1
LARGEST = 1 << 63
MARKS = ("baseline", "loaded", "first_inference", "steady")

Event = Mapping[str, Any]


def _text(value: object) -> bool:
    return isinstance(value, str)


def _text_or_null(value: object) -> bool:
    return value is None or isinstance(value, str)


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < LARGEST


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < LARGEST for item in value)


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LARGEST < value < LARGEST


def _number_or_null(value: object) -> bool:
    return value is None or _number(value)


def _scalar(value: object) -> bool:
    return isinstance(value, str) or _number(value)


def _scalar_or_null(value: object) -> bool:
    return value is None or _scalar(value)


def _anything(_value: object) -> bool:
    return True


#: Every event with the fields that it must have. More fields may come: they are optional and ignored.
FIELDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "hello": {
        "protocol": _count,
        "agent": _text,
        "pid": _count,
        "runtime": _text_or_null,
        "version": _text_or_null,
    },
    "fact": {"name": _text, "value": _anything},
    "setting": {"name": _text, "requested": _scalar, "observed": _scalar_or_null},
    "span": {"name": _text, "ns": _count},
    "check": {"sqnr_db": _number, "max_abs": _number_or_null, "sets": _count},
    "warmup": {"ns": _counts},
    "value": {"ns": _counts},
    "mark": {
        "name": _text,
        "peak_rss_bytes": _count,
        "rss_bytes": _count,
        "anon_bytes": _count,
        "file_bytes": _count,
        "swap_bytes": _count,
    },
    "end": {"status": _text},
    "error": {"stage": _text, "status": _text, "message": _text},
}


def read_probe(lines: Iterable[str]) -> dict[str, Any]:
    """The facts of a device by name; those without a value are None, with their reason in ``reasons``."""
    return _facts(list(read_events(lines)))


def read_unpacking(lines: Iterable[str]) -> dict[str, Any]:
    """What unpacking a container cost: ``decode_ns`` and the facts of device_agents/container.py."""
    found = list(read_events(lines))
    spans = _by_name(found, "span")
    if "decode" not in spans:
        raise _nonsense("there is no span decode")
    return {"decode_ns": spans["decode"]["ns"], **_facts(found)}


def read_block(lines: Iterable[str], job: Job, *, index: int, started_utc: str) -> Block:
    """The block that *job* asked for, complete and consistent in itself, else CellError."""
    events = list(read_events(lines))
    runtime = events[0]["runtime"]
    if runtime != RUNTIMES[job.format]:
        raise _nonsense(f"it ran {runtime}, asked for was {RUNTIMES[job.format]}")
    spans = _by_name(events, "span")
    for name in ("load", "first_inference"):
        if name not in spans:
            raise _nonsense(f"there is no span {name}")
    settings = _by_name(events, "setting")
    if "threads" not in settings:
        raise _nonsense("there is no setting threads")
    check = _check(events, job)
    block = Block(
        kind=job.kind,
        index=index,
        started_utc=started_utc,
        load_ns=spans["load"]["ns"],
        first_inference_ns=spans["first_inference"]["ns"],
        warmup_ns=_values(events, "warmup"),
        values_ns=_values(events, "value"),
        cpu_ns=_steady(spans, "cpu_ns"),
        wall_ns=_steady(spans, "ns"),
        marks=tuple(MemoryMark(**{k: e[k] for k in FIELDS["mark"]}) for e in events if e["event"] == "mark"),
        settings={k: Setting(requested=e["requested"], observed=e["observed"]) for k, e in settings.items()},
        facts=_facts(events)
        | {"agent": events[0]["agent"], "runtime_version": events[0]["version"]}
        | {"check": {key: check[key] for key in FIELDS["check"]}}
        | ({"container": dict(job.unpacked)} if job.unpacked else {}),
    )
    if job.kind == "latency":
        _verify_latency(block, spans, job)
    else:
        _verify_memory(block)
    return block


def read_events(lines: Iterable[str]) -> Iterator[Event]:
    """
    The events from ``hello`` up to ``end``, which is not among them; nothing after it is read.

    CellError with the agent's own status for an ``error`` event, agent_failed for anything that is not
    this protocol.
    """
    last = "the start"
    first = True
    for line in lines:
        event = _parse(line, last)
        kind = event["event"]
        if kind == "error":
            status = cast(Status, event["status"])
            known = status in STATUSES and status != "measured"
            raise CellError(status if known else "agent_failed", _sentence(event["message"]))
        if first and kind != "hello":
            raise _nonsense(f"it began with {kind} and not with hello")
        if kind == "hello":
            if not first:
                raise _nonsense("it said hello twice")
            if event["protocol"] != PROTOCOL:
                raise _nonsense(f"it speaks protocol {event['protocol']}, this host speaks {PROTOCOL}")
        first = False
        if kind == "end":
            return
        last = f"{kind} {event['name']}" if "name" in FIELDS[kind] else kind
        yield event
    raise _nonsense(f"its output ended after {last}, without end")


def _parse(line: str, last: str) -> Event:
    try:
        event = json.loads(line, parse_constant=_no_constant)
        kind = event["event"]
        fields = FIELDS[kind]
        for name, good in fields.items():
            if not good(event[name]):
                raise ValueError(f"{name} is {event[name]!r}")
        if kind not in ("value", "warmup"):  # those hold nothing but integers
            json.dumps(event, allow_nan=False, ensure_ascii=False).encode(
                "utf-8"
            )  # no 1e999, no half characters
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        shown = line[:120].encode("ascii", "backslashreplace").decode("ascii")
        raise _nonsense(f"after {last} it wrote a line that is no event: {shown!r}") from error
    return cast(Event, event)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _nonsense(what: str) -> CellError:
    return CellError("agent_failed", f"The agent did not keep to the protocol: {what}.")


def _sentence(message: str) -> str:
    text = " ".join(message.split()) or "The agent gave no message."
    return text if text[-1] in ".!?" else f"{text}."


def _facts(events: Iterable[Event]) -> dict[str, Any]:
    facts = {event["name"]: event["value"] for event in events if event["event"] == "fact"}
    told = {event["name"]: event.get("reason") for event in events if event["event"] == "fact"}
    reasons = {name: str(reason) for name, reason in told.items() if facts[name] is None and reason}
    return facts | {"reasons": reasons} if reasons else facts


def _by_name(events: Sequence[Event], kind: str) -> dict[str, Event]:
    found: dict[str, Event] = {}
    for event in events:
        if event["event"] == kind:
            if event["name"] in found:
                raise _nonsense(f"{kind} {event['name']} came twice")
            found[event["name"]] = event
    return found


def _values(events: Sequence[Event], kind: str) -> tuple[int, ...]:
    return tuple(value for event in events if event["event"] == kind for value in event["ns"])


def _steady(spans: Mapping[str, Event], key: str) -> int:
    value = spans["steady"].get(key) if "steady" in spans else 0
    if not _count(value):
        raise _nonsense(f"{key} of span steady is {value!r}")
    return cast(int, value)


def _check(events: Sequence[Event], job: Job) -> Event:
    """The one check: outputs were compared, all sets of them, well enough, before anything was timed."""
    kinds = [event["event"] for event in events]
    if kinds.count("check") != 1:
        raise _nonsense(f"it sent {kinds.count('check')} checks, expected 1")
    at = kinds.index("check")
    if "value" in kinds[:at] or "warmup" in kinds[:at]:
        raise _nonsense("it timed before it checked the outputs")
    check = events[at]
    if check["sets"] != job.check_sets:
        raise _nonsense(f"it checked {check['sets']} sets, asked for were {job.check_sets}")
    if not check["sqnr_db"] >= job.check_min_sqnr_db:
        raise CellError(
            "wrong_output",
            f"The outputs differ from the host's: SQNR {check['sqnr_db']:.1f} dB, "
            f"needed {job.check_min_sqnr_db:.1f} dB.",
        )
    return check


def _verify_latency(block: Block, spans: Mapping[str, Event], job: Job) -> None:
    if "steady" not in spans:
        raise _nonsense("there is no span steady")
    count = len(block.values_ns)
    if spans["steady"].get("iterations") != count:
        raise _nonsense(f"{count} values came, {spans['steady'].get('iterations')!r} were announced")
    if count < job.min_iterations or len(block.warmup_ns) < job.warmup_iterations:
        raise _nonsense(f"{count} values and {len(block.warmup_ns)} of warm-up are fewer than asked for")
    if block.wall_ns < job.min_time_s * 1e9 or block.wall_ns < sum(block.values_ns):
        raise _nonsense(f"the loop's {block.wall_ns} ns are shorter than asked for or than its values")
    if block.marks:
        raise _nonsense("a latency block holds memory marks")


def _verify_memory(block: Block) -> None:
    names = tuple(mark.name for mark in block.marks)
    if names != MARKS:
        raise _nonsense(f"the memory marks are {', '.join(names) or 'absent'}, expected {', '.join(MARKS)}")
    if block.values_ns or block.warmup_ns:
        raise _nonsense("a memory block holds timed values")
    for mark in block.marks:
        if not 0 < mark.rss_bytes <= mark.peak_rss_bytes:
            raise _nonsense(
                f"memory mark {mark.name} says {mark.rss_bytes} of at most {mark.peak_rss_bytes} B"
            )
