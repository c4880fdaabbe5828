"""A dead owner's lease is taken over, and nobody else's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from harness import leasing
from harness.core.errors import CellError
from harness.core.types import Device
from tests.harness.boards import Board, Line

PI = Device(name="pi5", transport="local")


@pytest.fixture
def killed() -> dict[str, Any]:
    """The owner that a run was whose process is gone."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return leasing.owner("k1") | {"pid": child.pid, "start_ticks": 5}


def take(board: Board) -> list[str]:
    said: list[str] = []
    mine = leasing.owner("k2")
    leasing.take(PI, Line(board), mine, wait_s=0, say=said.append, check=lambda: None)
    return said


def test_the_lease_of_a_run_that_was_killed_here_is_taken_over(killed: Mapping[str, Any]) -> None:
    board = Board(holder=dict(killed))
    said = take(board)
    assert board.holder is None
    pid = killed["pid"]
    assert said == [f"pi5: taking over the lease of run k1 of this host: its process {pid} is dead."]


def test_a_number_that_is_another_process_by_now_and_a_zombie_are_dead() -> None:
    mine = leasing.owner("k1")
    assert leasing.is_dead(mine | {"start_ticks": mine["start_ticks"] - 1})
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert leasing.is_dead(mine | {"pid": child.pid, "start_ticks": leasing.owner("")["start_ticks"]})
    child.wait()


@pytest.mark.parametrize(
    "change",
    [
        {"pid": os.getpid(), "start_ticks": leasing.owner("")["start_ticks"]},
        {"pid": os.getppid(), "start_ticks": None},
        {"host": "desk"},
        {"boot_id": "another"},
        {"boot_id": None},
        {"pid_namespace": "pid:[1]"},
        {"pid": "7"},
        {"pid": 0},
    ],
)
def test_what_lives_or_is_not_known_to_be_dead_keeps_its_lease(
    killed: Mapping[str, Any], change: Mapping[str, Any]
) -> None:
    board = Board(holder={**killed, **change})
    with pytest.raises(CellError, match="pi5 is in use by"):
        take(board)
    assert board.holder is not None
    assert leasing.is_dead(killed)
