"""One thread watches over many pieces of work; requests wait for company, and the first ones for nobody."""

from __future__ import annotations

import json
import threading

import pytest

from harness.transports._deadline import Watch
from harness.transports._wire import GREETING, Connection, LinkLost, bootstrap_bytes
from tests.agents.links import eventually

SOON_S = 0.01
LIMIT_S = 20.0  # of a test that fails


def test_work_that_takes_too_long_is_told_once_with_its_limit() -> None:
    told: list[float] = []
    done = threading.Event()

    def late(seconds: float) -> None:
        told.append(seconds)
        done.set()

    watch = Watch(late)
    with watch.within(1000.0):
        pass
    with watch.within(SOON_S):  # sooner than what the thread sleeps for
        assert done.wait(LIMIT_S)
    with watch.within(SOON_S):
        pass
    assert told == [SOON_S]
    watch.close()


def test_work_after_a_pause_is_watched_too() -> None:
    done = threading.Event()
    watch = Watch(lambda _: done.set())
    with watch.within(LIMIT_S):
        pass

    def rests() -> bool:
        with watch._changed:
            watch._changed.notify()  # as if those seconds had passed: it finds nothing to do
            return watch._wakes_s == 0

    assert eventually(rests)
    with watch.within(SOON_S):
        assert done.wait(LIMIT_S)
    watch.close()


def test_its_thread_ends_with_it() -> None:
    watch = Watch(lambda _: None)
    with watch.within(LIMIT_S):
        pass
    thread = watch._thread
    watch.close()
    assert thread is not None
    thread.join(LIMIT_S)
    assert not thread.is_alive()


class Recorded:
    """A link that keeps what is written, and answers what it was given."""

    def __init__(self, *answers: bytes) -> None:
        self.written: list[bytes] = []
        self.answers = list(answers)
        self.interrupt = False

    def read(self, n: int, /) -> bytes:
        return self.answers.pop(0)

    def write(self, data: bytes, /) -> None:
        self.written.append(data)
        if self.interrupt:
            raise KeyboardInterrupt

    def close(self) -> None:
        pass


def test_the_first_request_goes_out_with_the_sources_and_small_ones_together() -> None:
    link = Recorded(GREETING, b'{"id": 1, "ok": {}}\n', b'{"id": 2, "ok": {}}\n{"id": 3, "ok": {"x": 1}}\n')
    connection = Connection(link, answer_s=LIMIT_S)
    connection.ask("hello", {})
    assert len(link.written) == 1
    assert link.written[0].startswith(bootstrap_bytes())
    assert json.loads(link.written[0].removeprefix(bootstrap_bytes())) == {"id": 1, "call": "hello"}
    first, second = connection.send("one", {}), connection.send("two", {}, b"body")
    assert len(link.written) == 1
    connection.answer(first)
    assert connection.answer(second) == ({"x": 1}, b"")
    assert len(link.written) == 2
    assert link.written[1].endswith(b'"bytes": 4}\nbody')
    connection.close()


def test_an_interrupt_in_the_middle_of_a_request_ends_the_connection() -> None:
    link = Recorded()
    connection = Connection(link, answer_s=LIMIT_S)
    link.interrupt = True
    with pytest.raises(KeyboardInterrupt):
        connection.ask("hello", {})
    link.interrupt = False
    with pytest.raises(LinkLost, match="middle of a request"):
        connection.ask("hello", {})
    assert len(link.written) == 1
