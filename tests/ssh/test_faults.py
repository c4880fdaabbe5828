"""A link that breaks: pushes are resumed, streams go on, a dead link is noticed, a blocked send is freed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from harness.core.errors import DeviceError, TransientDeviceError
from harness.transports import _ssh_way, ssh
from tests.ssh.proxy import proxy
from tests.ssh.servers import Lab, new_key

SIZE_BYTES = 12 << 20


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead link is found dead within seconds."""
    monkeypatch.setattr(_ssh_way, "PING_S", 0.3)
    monkeypatch.setattr(_ssh_way, "SILENCE_S", 1.5)


def big_file(lab: Lab) -> Path:
    path = lab.folder / "model.onnx"
    path.write_bytes(os.urandom(SIZE_BYTES))
    return path


def test_a_push_goes_on_after_a_tcp_reset(lab: Lab) -> None:
    server, source = lab.server(), big_file(lab)
    with proxy(server.port) as link:
        lab.trust(server, link.port)
        transport = ssh.connect(lab.device(server, port=link.port))
        link.reset_after(SIZE_BYTES // 2)
        before = link.sent_bytes
        path = transport.push(source, "model.onnx")
        sent = link.sent_bytes - before
        transport.close()
    assert Path(path).read_bytes() == source.read_bytes()
    assert len(transport.incidents) == 1
    assert sent < 1.9 * SIZE_BYTES, "what had arrived was not sent again"
    assert link.links == 2


def test_a_blocked_send_is_freed_and_goes_on_over_a_new_link(lab: Lab) -> None:
    server, source = lab.server(), big_file(lab)
    with proxy(server.port, bytes_per_s=20e6) as link:
        lab.trust(server, link.port)
        transport = ssh.connect(lab.device(server, port=link.port))
        stalls = threading.Timer(0.1, link.stall)
        stalls.start()
        heals = threading.Timer(4.0, link.heal)
        heals.start()
        path = transport.push(source, "model.onnx")
        transport.close()
        heals.join()
    assert Path(path).read_bytes() == source.read_bytes()
    assert any("nothing was heard" in text for text in transport.incidents), transport.incidents


def test_a_link_that_never_comes_back(lab: Lab) -> None:
    server, source = lab.server(), big_file(lab)
    with proxy(server.port) as link:
        lab.trust(server, link.port)
        device = lab.device(server, port=link.port, patience_s=2.0, connect_timeout_s=1.0)
        transport = ssh.connect(device)
        said: list[str] = []
        transport.tell(said.append)
        link.stall()
        with pytest.raises(TransientDeviceError, match="did not come back"):
            transport.push(source, "model.onnx")
        transport.close()
    assert said == [f"{device.name}: the link is lost; waiting up to 2 s for it to come back"]


def test_the_output_of_an_agent_survives_a_cut(lab: Lab) -> None:
    server = lab.server()
    with proxy(server.port) as link:
        lab.trust(server, link.port)
        transport = ssh.connect(lab.device(server, port=link.port))
        program = "import time\nfor n in range(20):\n print(n, flush=True); time.sleep(0.1)"
        resets = threading.Timer(0.7, link.reset)
        resets.start()
        with transport.stream([transport.python, "-c", program], env={}, timeout_s=30) as stream:
            lines = list(stream)
        transport.close()
    assert lines == [str(n) for n in range(20)]
    assert stream.exit_code == 0
    assert transport.incidents


@pytest.mark.parametrize("how", ["restarted", "hung"])
def test_an_sshd_that_is_restarted_or_hangs(lab: Lab, how: str) -> None:
    server = lab.server()
    transport = ssh.connect(lab.device(server))
    if how == "hung":
        server.signal_sessions(signal.SIGSTOP)
    else:
        server.restart()
    assert transport.call("hello")["workdir"] == transport.workdir
    assert len(transport.incidents) == 1
    transport.close()


def test_a_host_key_that_changes_while_the_link_is_away_ends_it_at_once(lab: Lab) -> None:
    server = lab.server()
    transport = ssh.connect(lab.device(server, patience_s=60.0))
    server.stop()
    server.host_key.unlink()
    new_key(server.host_key)
    server.start()
    with pytest.raises(DeviceError, match="HAS CHANGED") as caught:
        transport.call("hello")
    assert not isinstance(caught.value, TransientDeviceError)
    transport.close()


def test_a_log_in_that_is_refused_after_it_worked_is_tried_again(lab: Lab) -> None:
    """A device that starts up lets nobody in for a while (pam_nologin)."""
    server = lab.server()
    transport = ssh.connect(lab.device(server))
    keys = server.folder / "authorized_keys"
    right = keys.read_text()
    keys.write_text("")
    server.restart()
    threading.Timer(1.0, keys.write_text, [right]).start()
    assert transport.call("hello")["workdir"] == transport.workdir
    transport.close()


def test_closing_on_a_dead_link_does_not_hang_and_leaves_no_thread(lab: Lab) -> None:
    server = lab.server()
    with proxy(server.port) as link:
        lab.trust(server, link.port)
        before = set(threading.enumerate())
        transport = ssh.connect(lab.device(server, port=link.port))
        link.stall()
        transport.close()
        ours = [t for t in set(threading.enumerate()) - before if "_forward" not in t.name]
        for thread in ours:
            thread.join(10)
        assert not [thread for thread in ours if thread.is_alive()]


def test_a_quiet_link_stays_open(lab: Lab) -> None:
    server = lab.server()
    transport = ssh.connect(lab.device(server))
    time.sleep(3.0)  # twice the silence that ends a dead one
    transport.call("hello")
    assert transport.incidents == ()
    transport.close()
