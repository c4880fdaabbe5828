"""
Which failures of a block are worth another try, how often, and after which pause. The one place for it.

Transient, the block is run again: the link was lost, the device restarted, the agent was killed by a signal
that was not lack of memory, it hung once, it spoke nonsense once. Stable, reported at once: everything else,
such as wrong credentials, another host key, no space, wrong outputs, an operator that a runtime lacks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeVar

import tenacity

from harness.core.errors import AgentTrouble, DeviceRebooted, TransientDeviceError
from harness.core.types import Incident
from harness.store import utc_now

TRIES = 3  # of a block whose device was lost, the first one included
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 20.0
T = TypeVar("T")


def tries(error: BaseException) -> int:
    """How often a block that failed with *error* is tried, the first time included."""
    if isinstance(error, TransientDeviceError):
        return TRIES
    return min(error.tries, TRIES) if isinstance(error, AgentTrouble) else 1


def kind(error: BaseException) -> Literal["lost", "rebooted", "retried"]:
    """What an incident that began with *error* is called as long as nothing more is known."""
    if isinstance(error, DeviceRebooted):
        return "rebooted"
    return "lost" if isinstance(error, TransientDeviceError) else "retried"


def _found_again(incidents: list[Incident]) -> None:
    """The device answers: what was lost has come back."""
    for place, incident in enumerate(incidents):
        if incident.kind == "lost":
            text = f"{incident.text} A later try reached it."
            incidents[place] = replace(incident, kind="reconnected", text=text)


def until_done(
    act: Callable[[], T],
    *,
    mend: Callable[[], None],
    block: str,
    incidents: list[Incident],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """
    What *act* gives, with more tries where they may help; the last error where they do not.

    *mend* is called before another try when the device was lost; what it raises counts as a try. Every
    failure that is tried again is added to *incidents*, for the block that is called *block*.
    """
    lost = False

    def attempt() -> T:
        nonlocal lost
        if lost:
            mend()
            lost = False
            _found_again(incidents)
        return act()

    def failed(state: tenacity.RetryCallState) -> bool:
        error = state.outcome.exception() if state.outcome else None
        return error is not None and state.attempt_number < tries(error)

    def note(state: tenacity.RetryCallState) -> None:
        nonlocal lost
        error = state.outcome.exception() if state.outcome else None
        if error is None:
            return
        lost = lost or isinstance(error, TransientDeviceError)
        incidents.append(Incident(kind=kind(error), utc=utc_now(), block=block, text=str(error)))

    # A little chance in the pause: devices that lost one switch together do not come back together.
    wait = tenacity.wait_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S)
    spread = tenacity.wait_random(0, FIRST_PAUSE_S / 2)
    return tenacity.Retrying(retry=failed, wait=wait + spread, before_sleep=note, sleep=sleep, reraise=True)(
        attempt
    )
