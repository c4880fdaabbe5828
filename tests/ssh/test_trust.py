"""``edgebench devices``: trusting a host key, and what is said of ssh devices that do not answer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from harness import cli
from harness.transports import ssh
from tests.ssh.servers import Lab, Server, new_key, public


def fleet(lab: Lab, server: Server, **more: object) -> list[str]:
    """The options that name a fleet with *server* as pi5."""
    entry = {"transport": "ssh", **lab.device(server).options, **more}
    path = lab.folder / "devices.yaml"
    path.write_text(json.dumps({"devices": {"pi5": entry}}))
    return ["--fleet", str(path)]


def trust(lab: Lab, server: Server, *argv: str, **more: object) -> int:
    return cli.run(["devices", "trust", "pi5", *fleet(lab, server, **more), *argv])


def fingerprint(server: Server) -> str:
    """As ssh-keygen prints it."""
    command = ["ssh-keygen", "-l", "-f", f"{server.host_key}.pub"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1]


def test_the_expected_fingerprint_is_pinned_and_connects(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    server = lab.server(trusted=False)
    assert trust(lab, server) == 4, "nobody is at a terminal"
    assert "--fingerprint" in capsys.readouterr().err
    assert trust(lab, server, "--fingerprint", "SHA256:" + "A" * 43) == 2
    assert not lab.known_hosts.exists()
    assert trust(lab, server, "--fingerprint", fingerprint(server)) == 0
    assert fingerprint(server) in capsys.readouterr().out
    assert lab.known_hosts.read_text() == server.known_line
    ssh.connect(lab.device(server)).close()
    assert trust(lab, server) == 0, "it is known already"
    assert lab.known_hosts.read_text() == server.known_line


def test_a_fingerprint_is_compared_with_a_known_key_too(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    gate, server = lab.server(), lab.server()
    before, wrong = lab.known_hosts.read_text(), "SHA256:" + "A" * 43
    jump = f"{gate.user}@127.0.0.1:{gate.port}"
    for more in ({}, {"jump": jump}):
        assert trust(lab, server, "--fingerprint", wrong, **more) == 2
        err = capsys.readouterr().err
        assert wrong in err
        assert fingerprint(server) in err
        assert trust(lab, server, "--fingerprint", fingerprint(server), **more) == 0
    assert lab.known_hosts.read_text() == before


def test_every_key_that_is_shown_is_pinned_hashed(lab: Lab) -> None:
    server = lab.server(f"HostKey {new_key(lab.folder / 'rsa', 'rsa')}", trusted=False)
    lab.config.write_text("Host *\n  HashKnownHosts yes\n")
    assert trust(lab, server, "--yes") == 0
    lines = lab.known_hosts.read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["ssh-ed25519", "ssh-rsa"]
    assert all(line.startswith("|1|") for line in lines)
    found = ["ssh-keygen", "-F", f"[127.0.0.1]:{server.port}", "-f", str(lab.known_hosts)]
    assert subprocess.run(found, capture_output=True).returncode == 0, "ssh finds them too"
    ssh.connect(lab.device(server)).close()


def test_a_changed_key_is_replaced_only_when_that_is_said(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    server = lab.server()
    old, before = fingerprint(server), lab.known_hosts.read_text()
    other = "other.example " + public(lab.key) + "\n"
    lab.known_hosts.write_text(before + other)
    server.stop()
    server.host_key.unlink()
    new_key(server.host_key)
    server.start()
    assert trust(lab, server, "--yes") == 2
    captured = capsys.readouterr()
    assert old in captured.out
    assert fingerprint(server) in captured.out
    assert "--replace" in captured.err
    assert lab.known_hosts.read_text() == before + other
    assert trust(lab, server, "--replace", "--yes") == 0
    assert lab.known_hosts.read_text() == other + server.known_line
    ssh.connect(lab.device(server)).close()


def test_trust_through_a_jump_host(lab: Lab) -> None:
    gate, last = lab.server(trusted=False), lab.server(trusted=False)
    jump = f"{gate.user}@127.0.0.1:{gate.port}"
    assert trust(lab, last, "--yes", jump=jump) == 0
    ssh.connect(lab.device(last, jump=jump)).close()


def test_known_hosts_that_is_switched_off_becomes_a_file_of_our_own(lab: Lab) -> None:
    server = lab.server(trusted=False)
    lab.config.write_text("Host *\n  UserKnownHostsFile /dev/null\n  StrictHostKeyChecking no\n")
    assert trust(lab, server, "--yes") == 0
    assert (lab.home / ".config/edgebench/known_hosts").read_text() == server.known_line
    ssh.connect(lab.device(server)).close()


def test_the_list_says_why_a_device_does_not_answer(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    server = lab.server(trusted=False)
    assert cli.run(["devices", *fleet(lab, server), "--json"]) == 2
    rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
    assert "edgebench devices trust pi5" in rows["pi5"]["reason"]
    server.stop()
    assert cli.run(["devices", *fleet(lab, server), "--json"]) == 2
    rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
    assert "refuses the connection" in rows["pi5"]["reason"]


def test_a_device_in_use_answers(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    server = lab.server()
    holder = ssh.connect(lab.device(server))
    owner = {"user": "ann", "host": "desk", "pid": 7, "run": "night"}
    holder.call("lease", action="take", owner=owner, period_s=60.0)
    try:
        assert cli.run(["devices", *fleet(lab, server), "--json"]) == 0
        rows = {row["device"]: row for row in json.loads(capsys.readouterr().out)}
        assert rows["pi5"]["answers"] is True
        assert "in use by ann@desk" in rows["pi5"]["in_use"]
        assert cli.run(["devices", *fleet(lab, server)]) == 0
        assert "in use by ann@desk" in " ".join(capsys.readouterr().out.split())
        assert cli.run(["doctor", "pi5", *fleet(lab, server), "--json"]) == 0
        (page,) = json.loads(capsys.readouterr().out)
    finally:
        holder.call("lease", action="release", owner=owner, period_s=60.0)
        holder.close()
    lines = {line["name"]: line for line in page["lines"]}
    assert "bad" not in {line["level"] for line in page["lines"]}
    assert lines["in use"]["level"] == lines["device"]["level"] == "warn"
    assert "ann@desk" in lines["in use"]["text"]


def test_only_ssh_devices_have_host_keys(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["devices", "trust", "local"]) == 4
    assert cli.run(["devices", "trust", "nobody"]) == 4
    assert "There is no device 'nobody'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("password", "hunter2", "secrets do not belong into this file"),
        ("passphrase", "hunter2", "secrets do not belong into this file"),
        ("host", "x; touch owned", "a host is letters"),
        ("host", "-oProxyCommand=touch owned", "a host is letters"),
        ("host", "x\ny", "a host is letters"),
        ("user", "$(touch owned)", "a user is letters"),
        ("user", "-l", "a user is letters"),
        ("jump", "gate;touch owned", "is not [user@]host[:port]"),
        ("jump", "-oProxyCommand=x", "is not [user@]host[:port]"),
        ("python", "python3; touch owned", "an interpreter is"),
        ("python", "-c", "an interpreter is"),
        ("workdir", "a\nb", "one line"),
        ("workdir", "a;b", "no ':' and no ';'"),
        ("workdir", "/a:b", "no ':' and no ';'"),
        ("workdir", "../..", "a folder of its own"),
        ("workdir", "a/../../b", "a folder of its own"),
        ("workdir", "~/", "a folder of its own"),
        ("workdir", ".", "a folder of its own"),
        ("port", 70000, "less than or equal to 65535"),
        ("hots", "x", "Did you mean 'host'?"),
    ],
)
def test_what_an_entry_may_not_say(
    lab: Lab, key: str, value: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lab.folder / "devices.yaml"
    path.write_text(json.dumps({"devices": {"pi5": {"transport": "ssh", "host": "x", key: value}}}))
    assert cli.run(["devices", "--fleet", str(path)]) == 4
    err = capsys.readouterr().err
    assert said in err
    assert f"{path}:1" in err
    assert "hunter2" not in err
    assert not Path("owned").exists()
