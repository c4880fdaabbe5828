"""
Questions to whoever sits at the terminal, and work in parallel that may ask them.

A question is always asked in the main thread: there Ctrl-C reaches it, and the terminal is put back.
"""

from __future__ import annotations

import getpass
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

WORKERS = 16
LEAVING_S = 2.0  # what runs when the user wants to leave may end its work within this time

T = TypeVar("T")
R = TypeVar("R")


def secret(question: str) -> str | None:
    """
    What is typed on the terminal, unseen; None for nothing, and where nobody sits at one.

    A thread has no terminal of its own: only one of in_parallel() may ask, and the main thread does it.
    """
    desk: _Desk[object] | None = getattr(_here, "desk", None)
    if desk is not None:
        return desk.ask(question)
    if threading.current_thread() is not threading.main_thread():
        return None
    return typed(question)


def typed(question: str) -> str | None:
    """What is typed on the terminal by whoever sits there; see secret()."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    try:
        return getpass.getpass(question, stream=sys.stderr) or None
    except EOFError:
        return None
    except KeyboardInterrupt:
        sys.stderr.write("\n")  # what is said next begins a line of its own
        raise


def in_parallel(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """
    *work* of each item, in their order, WORKERS at a time; the first error of one is raised.

    Ctrl-C ends it within LEAVING_S: the threads are daemons, and one that hangs is waited for by nobody.
    """
    todo = deque(enumerate(items))
    count = len(todo)
    desk: _Desk[R] = _Desk()

    def run() -> None:
        _here.desk = desk
        while not desk.closed:
            try:
                number, item = todo.popleft()
            except IndexError:
                return
            try:
                desk.told.put(_Done(number, work(item)))
            except BaseException as error:  # noqa: BLE001 - it is raised where the results are collected
                desk.told.put(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(WORKERS, count))]
    try:
        for thread in threads:
            thread.start()
        done = dict(desk.next_result() for _ in range(count))
    except BaseException:
        desk.close()
        deadline = time.monotonic() + LEAVING_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        raise
    return [done[number] for number in range(count)]


_here = threading.local()  # .desk: where this thread brings its questions


@dataclass(frozen=True, slots=True)
class _Question:
    text: str
    answer: SimpleQueue[str | BaseException | None] = field(default_factory=SimpleQueue)


@dataclass(frozen=True, slots=True)
class _Done(Generic[R]):
    number: int
    result: R


class _Desk(Generic[R]):
    """Where workers bring results and questions, and the thread that started them takes both."""

    def __init__(self) -> None:
        self.told: SimpleQueue[_Done[R] | _Question | BaseException] = SimpleQueue()
        self.closed = False
        self._asked: _Question | None = None
        self._guard = threading.Lock()

    def ask(self, text: str) -> str | None:
        """For a worker: the answer to a question; KeyboardInterrupt when nobody will answer any more."""
        question = _Question(text)
        with self._guard:
            if self.closed:
                raise KeyboardInterrupt
            self.told.put(question)
        answer = question.answer.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def next_result(self) -> tuple[int, R]:
        """The next result; questions that come before it are asked."""
        while True:
            told = self.told.get()
            if isinstance(told, BaseException):
                raise told
            if isinstance(told, _Done):
                return told.number, told.result
            self._asked = told
            told.answer.put(secret(told.text))
            self._asked = None

    def close(self) -> None:
        """Free whoever waits for an answer."""
        with self._guard:
            self.closed = True
        waiting: list[object] = [self._asked]
        try:
            while True:
                waiting.append(self.told.get_nowait())
        except Empty:
            pass
        for told in waiting:
            if isinstance(told, _Question):
                told.answer.put(KeyboardInterrupt())
