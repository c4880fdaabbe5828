"""What identifies a device is told apart from what changes on it."""

from __future__ import annotations

from typing import Any

from harness.core import fingerprint

FACTS: dict[str, Any] = {
    "model": "a board",
    "memory_total_bytes": 8443592704,
    "governors": None,
    "temperatures_c": {"cpu": 48.0},
    "fans_rpm": None,
    "reasons": {"governors": "no cpufreq", "fans_rpm": "no fan"},
}


def test_split() -> None:
    stable, volatile = fingerprint.split(FACTS)
    assert stable == {
        "model": "a board",
        "memory_total_bytes": 8443592704,
        "governors": None,
        "reasons": {"governors": "no cpufreq"},
        "fingerprint": fingerprint.fingerprint(FACTS),
    }
    assert volatile == {
        "temperatures_c": {"cpu": 48.0},
        "fans_rpm": None,
        "reasons": {"fans_rpm": "no fan"},
    }
    assert fingerprint.split(stable)[0] == stable  # a record that is read back has the same one


def test_heat_and_words_and_a_few_kib_make_no_other_device() -> None:
    later = FACTS | {
        "temperatures_c": {"cpu": 81.5},
        "load_average_1min": 3.0,
        "memory_total_bytes": FACTS["memory_total_bytes"] - 12288,
        "reasons": {"governors": "in other words"},
    }
    assert fingerprint.fingerprint(later) == fingerprint.fingerprint(FACTS)
    assert fingerprint.differences(FACTS, later) == []


def test_what_differs_is_named() -> None:
    other = FACTS | {"model": "another", "kernel": "6.1", "memory_total_bytes": 4 << 30}
    assert fingerprint.fingerprint(other) != fingerprint.fingerprint(FACTS)
    assert fingerprint.differences(FACTS, other) == ["kernel", "memory_total_bytes", "model"]


def test_a_record_from_before_versions_were_told_is_of_the_same_device() -> None:
    old = FACTS | {"runtimes": {"onnxruntime": "1.2", "litert": None, "executorch": None}}
    now = old | {"runtimes": {"onnxruntime": "1.2", "litert": None, "executorch": "1.5.1"}}
    now |= {"packages": {"numpy": "2.1", "onnxruntime": "1.2"}}
    assert fingerprint.differences(old, now) == []
    assert fingerprint.differences(now, old) == []
    more = now | {"packages": now["packages"] | {"flatbuffers": "25"}}
    assert fingerprint.differences(now, more) == []


def test_another_version_is_another_device() -> None:
    runtimes = {"onnxruntime": "1.2", "litert": None, "executorch": "1.5.1"}
    now = FACTS | {"runtimes": runtimes, "packages": {"numpy": "2.1"}}
    assert fingerprint.differences(now, now | {"packages": {"numpy": "2.2"}}) == ["packages"]
    for name, version in (("executorch", "1.5.2"), ("litert", "2.3"), ("onnxruntime", None)):
        assert fingerprint.differences(now, now | {"runtimes": runtimes | {name: version}}) == ["runtimes"]
