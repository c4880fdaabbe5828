"""Have a device unpack a model file from its container before an agent loads it, and time that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import device_agents
from harness.core import events
from harness.core.errors import CellError
from harness.core.types import Artifact
from harness.session import Session

PROGRAM = Path(device_agents.__file__).parent / "container.py"
TIMEOUT_S = 600.0


def push_model(session: Session, artifact: Artifact) -> tuple[str, Mapping[str, Any]]:
    """
    Put the model of *artifact* on the device: its path there, and what unpacking it cost.

    A packed one is unpacked anew each time, by a process of its own: its time is no part of the load time and
    its memory none of the agent's. The facts are ``decode_ns``, ``container_bytes``, ``model_bytes`` and
    ``decoder`` (``numpy`` or ``python``); there are none for a file without a container.
    """
    packed = artifact.container
    if packed is None:
        return session.push(Path(artifact.path), sha256=artifact.sha256), {}
    container = session.push(Path(packed.path), sha256=packed.sha256)
    name = f"{artifact.sha256[:16]}{Path(artifact.path).suffix}"
    model = str(PurePosixPath(container).with_name(name))
    program = session.push(PROGRAM)
    argv = [session.transport.python, program, f"container={container}", f"model={model}"]
    with session.transport.stream(argv, env=session.python_env(), timeout_s=TIMEOUT_S) as stream:
        try:
            return model, events.read_unpacking(stream)
        except CellError as error:
            lines = stream.errors.strip().splitlines()
            failure, words = error, f" Its last words: {lines[-1][:300]}" if lines else ""
    if failure.status != "agent_failed":
        raise failure
    raise CellError("agent_failed", f"The container was not unpacked: {failure.message}{words}") from failure
