"""Settings are set, read back and put back: a tree of files and programs that behave as on a device."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from harness import probing
from tests.agents.board import Board


@pytest.fixture(scope="session")
def settings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings", probing.FOLDER / "settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def board(settings: ModuleType) -> Iterator[Board]:
    root = Path(tempfile.mkdtemp())  # not below pytest's folder, which other users cannot enter
    root.chmod(0o755)
    yield Board(root, settings)
    shutil.rmtree(root)


def test_a_governor_is_set_read_back_and_put_back(board: Board) -> None:
    row = board.apply(governor="performance")["governor"]
    assert row == {
        "requested": "performance",
        "observed": "performance",
        "before": "ondemand",
        "reason": None,
    }
    assert board.values("scaling_governor") == ["performance"] * 2
    assert board.kept["governor"]["policies"] == {"policy0": "ondemand", "policy1": "ondemand"}
    row = board.restore()["governor"]
    assert row == {"requested": "ondemand", "observed": "ondemand", "before": "performance", "reason": None}
    assert board.values("scaling_governor") == ["ondemand"] * 2
    assert not list(board.folder.iterdir())
    assert board.restore() == {}


def test_policies_that_differ_get_back_what_each_had(board: Board) -> None:
    board.policy(1, scaling_governor="performance", scaling_min_freq=1, scaling_max_freq=2)
    assert (
        board.apply(governor="performance")["governor"]["before"] == "policy0: ondemand, policy1: performance"
    )
    board.restore()
    assert board.values("scaling_governor") == ["ondemand", "performance"]


def test_what_is_so_already_is_not_touched(board: Board) -> None:
    board.lock()
    row = board.apply(governor="ondemand")["governor"]
    assert (row["observed"], row["before"], row["reason"]) == ("ondemand", "ondemand", None)
    assert not list(board.folder.iterdir())


def test_the_first_value_from_before_is_kept(board: Board) -> None:
    board.policy(
        0, scaling_governor="a", scaling_available_governors="a b c", scaling_min_freq=1, scaling_max_freq=2
    )
    board.policy(
        1, scaling_governor="a", scaling_available_governors="a b c", scaling_min_freq=1, scaling_max_freq=2
    )
    board.apply(governor="b")
    assert board.apply(governor="c")["governor"]["before"] == "a"
    assert board.apply(governor="a")["governor"]["observed"] == "a"
    board.apply(governor="b")
    board.restore()
    assert board.values("scaling_governor") == ["a", "a"]


def test_without_permission_nothing_changes_and_root_is_named(board: Board) -> None:
    board.lock()
    row = board.apply(governor="performance")["governor"]
    assert (row["observed"], row["before"]) == ("ondemand", "ondemand")
    assert "may not be written" in row["reason"]
    assert "sudo: true" in row["reason"]
    assert board.restore()["governor"]["reason"] is None
    assert not list(board.folder.iterdir())


def test_sudo_writes_what_the_user_may_not(board: Board) -> None:
    board.lock()
    board.tools("sudo")
    assert board.apply(sudo=True, governor="performance")["governor"]["observed"] == "performance"
    assert board.restore()["governor"]["observed"] == "ondemand"  # also with sudo, as it was set


def test_sudo_that_asks_for_a_password_is_a_reason(board: Board) -> None:
    board.lock()
    board.tools("sudo")
    (board.root / "sudo_asks").touch()
    row = board.apply(sudo=True, governor="performance")["governor"]
    assert row["observed"] == "ondemand"
    assert "a password is required" in row["reason"]


def test_a_governor_that_is_not_there_is_refused_with_those_that_are(board: Board) -> None:
    row = board.apply(governor="fast")["governor"]
    assert row["observed"] == "ondemand"
    assert row["reason"] == "policy0 has no governor fast; it has ondemand, performance"


def test_a_value_that_the_kernel_refuses(board: Board) -> None:
    """A file of the real kernel that takes numbers only."""
    folder = board.policy(1, scaling_available_governors="", scaling_min_freq=1, scaling_max_freq=2)
    (folder / "scaling_governor").unlink()
    (folder / "scaling_governor").symlink_to("/proc/self/oom_score_adj")
    row = board.apply(governor="performance")["governor"]
    assert row["observed"].startswith("policy0: performance, policy1: ")
    assert "the kernel refused performance" in row["reason"]
    assert "Invalid argument" in row["reason"]
    board.restore()
    assert board.values("scaling_governor")[0] == "ondemand"


def test_a_value_that_stays_as_it_was_is_seen(board: Board) -> None:
    board.lock()
    board.tools("sudo")
    (board.root / "swallows").touch()
    row = board.apply(sudo=True, governor="performance")["governor"]
    assert (row["observed"], row["reason"]) == ("ondemand", "it was set, but it does not read so")


def test_clocks_are_pinned_to_their_largest(board: Board) -> None:
    row = board.apply(clocks="max")["clocks"]
    assert row["observed"] == "max"
    assert row["before"] == "policy0: 300000-1500000 kHz, policy1: 500000-2400000 kHz"
    assert board.values("scaling_min_freq") == ["1500000", "2400000"]
    assert board.restore()["clocks"]["observed"] == row["before"]
    assert board.values("scaling_min_freq") == ["300000", "500000"]


def test_other_clocks_than_max_are_refused(board: Board) -> None:
    assert "max only" in board.apply(clocks="1500000")["clocks"]["reason"]


def test_jetson_clocks_is_stored_before_and_restored_after(board: Board) -> None:
    board.tools("sudo", "jetson_clocks")
    board.lock()
    assert board.apply(sudo=True, clocks="max")["clocks"]["observed"] == "max"
    assert board.apply(sudo=True, clocks="max")["clocks"]["observed"] == "max"
    stored = board.folder / "jetson_clocks.conf"
    calls = (board.root / "jetson_clocks.log").read_text().splitlines()
    assert calls == [f"--store {stored}", ""]
    assert board.restore()["clocks"]["reason"] is None
    assert board.values("scaling_min_freq") == ["300000", "500000"]
    assert not list(board.folder.iterdir())


def test_jetson_clocks_without_root_says_what_root_would_add(board: Board) -> None:
    board.tools("jetson_clocks")
    row = board.apply(clocks="max")["clocks"]
    assert row["observed"] == row["before"]
    assert "run as root" in row["reason"]
    assert "sudo: true" in row["reason"]


def test_a_power_mode_is_set_by_name(board: Board) -> None:
    board.tools("sudo", "nvpmodel")
    row = board.apply(sudo=True, power_mode="10W")["power_mode"]
    assert row == {"requested": "10W", "observed": "10W", "before": "MAXN", "reason": None}
    assert board.apply(sudo=True, power_mode=1)["power_mode"]["observed"] == 1
    assert board.restore()["power_mode"]["observed"] == "MAXN"
    assert (board.root / "mode").read_text() == "MAXN 0\n"


def test_an_unknown_power_mode_names_the_known_ones(board: Board) -> None:
    board.tools("sudo", "nvpmodel")
    row = board.apply(sudo=True, power_mode="15W")["power_mode"]
    assert row["observed"] == "MAXN"
    assert row["reason"] == "/etc/nvpmodel.conf has no power mode 15W; it has MAXN, 10W"


def test_a_power_mode_that_needs_a_reboot_says_so(board: Board) -> None:
    board.tools("sudo", "nvpmodel")
    (board.root / "needs_reboot").touch()
    row = board.apply(sudo=True, power_mode="10W")["power_mode"]
    assert row["observed"] == "MAXN"
    assert "it needs a reboot" in row["reason"]
    assert "nvpmodel -m 1" in row["reason"]


def test_a_power_mode_without_root_is_a_reason(board: Board) -> None:
    board.tools("nvpmodel")
    row = board.apply(power_mode="10W")["power_mode"]
    assert "Permission denied" in row["reason"]
    assert "sudo: true" in row["reason"]


def test_all_three_together_and_back(board: Board) -> None:
    board.tools("sudo", "nvpmodel", "jetson_clocks")
    board.lock()
    rows = board.apply(sudo=True, clocks="max", governor="performance", power_mode="10W")
    assert {name: row["observed"] for name, row in rows.items()} == {
        "clocks": "max",
        "governor": "performance",
        "power_mode": "10W",
    }
    back = board.restore()
    assert [row["reason"] for row in back.values()] == [None] * 3
    assert board.read()["governor"]["observed"] == "ondemand"
    assert not list(board.folder.iterdir())


def test_a_crash_in_the_middle_leaves_what_can_be_put_back(
    board: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> None:
        os._exit(1)

    with monkeypatch.context() as patch:
        patch.setattr(board.module, "_limits", dies)
        with pytest.raises(json.JSONDecodeError):
            board.apply(clocks="max")
    assert board.kept == {}
    write = board.module._write

    def half(root: str, path: str, value: str, sudo: bool) -> None:
        write(root, path, value, sudo)
        os._exit(1)

    with monkeypatch.context() as patch:
        patch.setattr(board.module, "_write", half)
        with pytest.raises(json.JSONDecodeError):
            board.apply(governor="performance")
    assert board.values("scaling_governor") == ["performance", "ondemand"]
    assert board.restore()["governor"]["observed"] == "ondemand"
    assert board.values("scaling_governor") == ["ondemand", "ondemand"]


def test_after_a_reboot_what_came_back_by_itself_is_no_fault(board: Board) -> None:
    board.apply(governor="performance", clocks="max")
    for number, (low, high) in enumerate([(300000, 1500000), (500000, 2400000)]):
        board.policy(number, scaling_min_freq=low, scaling_max_freq=high)
    assert {row["reason"] for row in board.restore().values()} == {None}
    assert board.kept == {}


def test_what_cannot_be_put_back_stays_noted(board: Board) -> None:
    board.apply(governor="performance", clocks="max")
    board.lock()
    for path in (board.root / "sys").rglob("scaling_min_freq"):
        path.chmod(0o644)
    rows = board.restore()
    assert rows["clocks"]["reason"] is None
    assert "may not be written" in rows["governor"]["reason"]
    assert set(board.kept) == {"governor"}


def test_a_device_without_such_things_says_so(board: Board) -> None:
    shutil.rmtree(board.root / "sys")
    rows = board.apply(governor="performance", clocks="max", power_mode="MAXN", volume="11")
    assert {name: row["observed"] for name, row in rows.items()} == dict.fromkeys(rows)
    assert rows["governor"]["reason"] == rows["clocks"]["reason"] == "this system has no cpufreq"
    assert rows["power_mode"]["reason"] == "there is no nvpmodel"
    assert rows["volume"]["reason"] == "volume is no setting; known are power_mode, governor, clocks"
    assert not list(board.folder.iterdir())


def test_reading_changes_nothing(board: Board) -> None:
    board.tools("nvpmodel")
    assert {name: row["observed"] for name, row in board.read().items()} == {
        "power_mode": "MAXN",
        "governor": "ondemand",
        "clocks": "policy0: 300000-1500000 kHz, policy1: 500000-2400000 kHz",
    }
    assert not list(board.folder.iterdir())
