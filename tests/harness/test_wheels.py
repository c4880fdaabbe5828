"""Which wheels a device can run, found by the real pip among wheels made by hand."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from harness import wheels
from harness.core.errors import DeviceError
from harness.wheels import NoWheel, Target, Wheel
from tests.harness import wheelhouse

JETPACK_5 = Target(machine="aarch64", python=(3, 8), glibc=(2, 31))
DEBIAN_12 = Target(machine="aarch64", python=(3, 11), glibc=(2, 36))


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wheels, "host_version", lambda _: None)
    return wheelhouse.alone(monkeypatch, tmp_path / "house")


def found(package: str, target: Target, cache: Path, *, allowed: str = "") -> Wheel:
    answer = wheels.resolve(package, target, cache, allowed=allowed)
    assert isinstance(answer, Wheel), answer
    return answer


def test_platform_tags_go_from_the_newest_to_the_oldest() -> None:
    tags = JETPACK_5.platforms
    assert tags[0] == "manylinux_2_31_aarch64"
    assert tags[-3:] == ["manylinux_2_17_aarch64", "manylinux2014_aarch64", "linux_aarch64"]
    assert len(tags) == 31 - 17 + 1 + 2
    assert "manylinux_2_32_aarch64" not in tags


def test_platform_tags_of_other_machines() -> None:
    intel = Target(machine="x86_64", python=(3, 11), glibc=(2, 36)).platforms
    assert {"manylinux1_x86_64", "manylinux2010_x86_64", "manylinux_2_5_x86_64"} <= set(intel)
    arm = Target(machine="armv7l", python=(3, 11), glibc=(2, 36)).platforms
    assert arm[-1] == "linux_armv7l"
    assert "manylinux2010_armv7l" not in arm


@pytest.mark.parametrize("machine", ["aarch64", "armv8l"])
def test_a_32_bit_python_on_a_64_bit_kernel_is_a_32_bit_device(machine: str) -> None:
    facts = {"machine": machine, "bits": "32", "python": "3.11.2", "libc": "glibc 2.36"}
    assert wheels.parse_target("pi", facts) == Target(machine="armv7l", python=(3, 11), glibc=(2, 36))


def test_the_target_is_what_the_python_there_is() -> None:
    facts = {"machine": "aarch64", "bits": "64", "python": "3.8.10", "libc": "glibc 2.31"}
    assert wheels.parse_target("jetson", facts) == JETPACK_5


def test_another_c_library_is_refused_with_its_name() -> None:
    facts = {"machine": "aarch64", "bits": "64", "python": "3.12.1", "libc": "musl 1.2"}
    with pytest.raises(DeviceError, match=r"box has the C library 'musl 1\.2'"):
        wheels.parse_target("box", facts)


def test_the_version_of_this_machine_is_preferred(
    tmp_path: Path, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("1.0", "2.0", "3.0"):
        wheelhouse.make(house, "toy", version, python="cp311", platform="manylinux_2_28_aarch64")
    monkeypatch.setattr(wheels, "host_version", lambda _: "2.0")
    wheel = found("toy", DEBIAN_12, tmp_path / "cache")
    assert (wheel.version, wheel.note) == ("2.0", "")
    assert wheel.downloaded_bytes == wheel.path.stat().st_size


def test_else_the_newest_that_fits_and_a_note_says_so(
    tmp_path: Path, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheelhouse.make(house, "toy", "1.0", python="cp38", platform="manylinux2014_aarch64")
    wheelhouse.make(house, "toy", "1.5", python="cp38", platform="manylinux_2_28_aarch64")
    wheelhouse.make(house, "toy", "1.9", python="cp38", platform="manylinux_2_34_aarch64")  # glibc too new
    wheelhouse.make(house, "toy", "1.8", python="cp38", platform="manylinux_2_28_x86_64")
    wheelhouse.make(house, "toy", "2.0", python="cp311", platform="manylinux_2_28_aarch64")
    monkeypatch.setattr(wheels, "host_version", lambda _: "2.0")
    wheel = found("toy", JETPACK_5, tmp_path / "cache")
    assert wheel.version == "1.5"
    assert "Python 3.8 on aarch64 with glibc 2.31; this machine has 2.0" in wheel.note


def test_no_wheel_is_a_reason_and_is_remembered(tmp_path: Path, house: Path) -> None:
    wheelhouse.make(house, "toy", "2.0", python="cp311", platform="manylinux_2_28_aarch64")
    first = wheels.resolve("toy", JETPACK_5, tmp_path)
    assert first == NoWheel(reason="toy has no wheel for Python 3.8 on aarch64 with glibc 2.31")
    wheelhouse.make(house, "toy", "1.0", python="cp38", platform="manylinux2014_aarch64")
    assert wheels.resolve("toy", JETPACK_5, tmp_path) == first
    (answer,) = (tmp_path / "wheels" / "resolved").glob("*.json")
    os.utime(answer, (0, 0))  # for a week
    assert found("toy", JETPACK_5, tmp_path).version == "1.0"


def test_allowed_versions_are_kept_to(tmp_path: Path, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("1.24.2", "2.4.6"):
        wheelhouse.make(house, "numpy", version, python="cp311", platform="manylinux2014_aarch64")
    monkeypatch.setattr(wheels, "host_version", lambda _: "2.4.6")
    assert found("numpy", DEBIAN_12, tmp_path).version == "2.4.6"
    assert found("numpy", DEBIAN_12, tmp_path, allowed=">=1.21,<2").version == "1.24.2"


def test_the_second_call_asks_nobody(tmp_path: Path, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheelhouse.make(house, "toy", "1.0", python="cp311", platform="manylinux2014_aarch64")
    first = found("toy", DEBIAN_12, tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    again = found("toy", DEBIAN_12, tmp_path)
    assert (again.path, again.sha256, again.downloaded_bytes) == (first.path, first.sha256, 0)


def test_a_damaged_wheel_in_the_cache_is_fetched_again(tmp_path: Path, house: Path) -> None:
    wheelhouse.make(house, "toy", "1.0", python="cp311", platform="manylinux2014_aarch64")
    first = found("toy", DEBIAN_12, tmp_path)
    first.path.write_bytes(b"half")
    again = found("toy", DEBIAN_12, tmp_path)
    assert wheels.sha256_of(again.path) == first.sha256
    assert again.downloaded_bytes > 0


def test_a_lost_connection_is_no_final_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    house = wheelhouse.alone(monkeypatch, tmp_path / "house")
    monkeypatch.setattr(wheels, "host_version", lambda _: None)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    answer = wheels.resolve("toy", DEBIAN_12, tmp_path / "cache")
    assert isinstance(answer, NoWheel)
    assert not answer.final
    assert "could not be fetched" in answer.reason
    wheelhouse.make(house, "toy", "1.0", python="cp311", platform="manylinux2014_aarch64")
    assert found("toy", DEBIAN_12, tmp_path / "cache").version == "1.0"


def test_what_a_wheel_asks_of_numpy(tmp_path: Path, house: Path) -> None:
    asked = ["numpy>=1.21; python_version < '3.9'", "numpy>=1.26; python_version >= '3.9'"]
    asked += ["numpy>=99; extra == 'dev'", "numpydoc>=5", "tqdm"]
    wheelhouse.make(house, "toy", "1.0", python="cp311", platform="manylinux2014_aarch64", requires=asked)
    wheel = found("toy", DEBIAN_12, tmp_path)
    assert wheels.needs(wheel, "numpy", DEBIAN_12) == ">=1.26"
    assert wheels.needs(wheel, "numpy", JETPACK_5) == ">=1.21"
    assert wheels.needs(wheel, "torch", JETPACK_5) == ""


def test_a_slim_wheel_has_what_runs_and_no_more(tmp_path: Path, house: Path) -> None:
    kept = ["ai_edge_litert/__init__.py", "ai_edge_litert/interpreter.py", "ai_edge_litert/libLiteRt.so"]
    dropped = [
        *("ai_edge_litert/aot/compiler.py", "ai_edge_litert/libLiteRtWebGpuAccelerator.so"),
        *(
            "ai_edge_litert/vendors/some/libPlugin.so",
            "ai_edge_litert/x.pyi",
            "ai_edge_litert/tests/test_a.py",
        ),
    ]
    files = dict.fromkeys([*kept, *dropped], "content")
    wheelhouse.make(
        house, "ai-edge-litert", "1.0", python="cp311", platform="manylinux2014_aarch64", files=files
    )
    wheel = found("ai-edge-litert", DEBIAN_12, tmp_path)
    path = wheels.slim(wheel)
    with zipfile.ZipFile(path) as file:
        names = set(file.namelist())
        assert file.read(kept[0]) == b"content"
    assert {name for name in names if ".dist-info/" not in name} == set(kept)
    assert any(name.endswith(".dist-info/METADATA") for name in names)  # it says the version
    before = path.stat().st_mtime_ns
    assert wheels.slim(wheel).stat().st_mtime_ns == before


def test_equal_content_makes_equal_archives(tmp_path: Path) -> None:
    for name in ("one.zip", "other.zip"):
        wheels.pack(tmp_path / name, [("a/b.py", b"text"), ("c.so", b"\x7fELF")])
    assert wheels.sha256_of(tmp_path / "one.zip") == wheels.sha256_of(tmp_path / "other.zip")
