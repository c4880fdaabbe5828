"""edgebench doctor over a real sshd: the page of a device that answers, and of those that do not."""

from __future__ import annotations

from harness.doctor import Page, examine
from tests.ssh.servers import Lab, free_port, new_key


def levels(page: Page) -> dict[str, str]:
    return {line.name: line.level for line in page.lines}


def test_a_device_that_answers(lab: Lab) -> None:
    page = examine(lab.device(lab.server()))
    found = {line.name: line for line in page.lines}
    assert found["reachable"].level == "ok"
    assert "ssh-ed25519 SHA256:" in found["host key"].text
    assert "strictly checked" in found["host key"].text
    assert found["clock"].level == "ok"  # it is this machine's
    assert found["in use"].text == "by nobody"
    assert "20 times" in found["noise"].text
    assert page.facts["fingerprint"]


def test_an_ordinary_user_needs_no_root(lab: Lab) -> None:
    page = examine(lab.device(lab.ordinary()))
    assert levels(page)["reachable"] == levels(page)["disk"] == "ok"
    assert page.conditions["free_disk_bytes"] > 0


def test_an_unknown_host_key_is_a_page(lab: Lab) -> None:
    page = examine(lab.device(lab.server(trusted=False)))
    (line,) = page.lines
    assert line.level == "bad"
    assert "key" in line.text.lower()
    assert "edgebench devices trust pi5" in line.todo


def test_a_changed_host_key_is_a_page(lab: Lab) -> None:
    server = lab.server()
    server.stop()
    server.host_key.unlink()
    new_key(server.host_key)
    server.start()
    (line,) = examine(lab.device(server)).lines
    assert line.level == "bad"
    assert "key" in line.text.lower()


def test_nobody_listens(lab: Lab) -> None:
    server = lab.server()
    page = examine(lab.device(server, port=free_port(), connect_timeout_s=2.0))
    (line,) = page.lines
    assert (line.name, line.level) == ("reachable", "bad")
    assert line.todo
