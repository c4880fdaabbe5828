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
