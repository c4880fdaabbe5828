"""Connecting over ssh: who is let in, through what, and one typed sentence for everything that fails."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from harness.core.errors import DeviceError, TransientDeviceError
from harness.core.types import Device
from harness.transports import _ssh_auth, _ssh_config, ssh
from tests.ssh.proxy import proxy
from tests.ssh.servers import Lab, agent, free_port, need, new_key, public


def connected(device: Device) -> dict[str, object]:
    """hello of a device that lets us in."""
    transport = ssh.connect(device)
    try:
        return transport.call("hello")
    finally:
        transport.close()


def refusal(device: Device, *, transient: bool) -> str:
    """The sentence of a device that does not let us in; its class says whether to try again."""
    with pytest.raises(DeviceError) as caught:
        connected(device)
    assert isinstance(caught.value, TransientDeviceError) is transient, caught.value
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_device_with_the_users_own_key(lab: Lab) -> None:
    facts = connected(lab.device(lab.server()))
    assert facts["workdir"] == str(lab.folder / "work" / "pi5")


def test_a_host_alias_of_ssh_config_with_its_own_key(lab: Lab) -> None:
    server = lab.server()
    other = new_key(lab.folder / "other")
    server.authorize(other)
    (lab.home / ".ssh" / "id_ed25519").unlink()
    (lab.home / ".ssh" / "more").write_text(f"Host desk\n  Port {server.port}\n  IdentityFile {other}\n")
    lab.config.write_text(f"Include more\nHost desk\n  HostName 127.0.0.1\n  User {server.user}\n")
    device = Device(name="pi5", transport="ssh", options={"host": "desk", "workdir": str(lab.folder / "w")})
    assert connected(device)["user"]


def test_an_ordinary_user_with_a_default_workdir(lab: Lab) -> None:
    server = lab.ordinary()
    facts = connected(lab.device(server, workdir=".edgebench"))
    assert facts["uid"] == 4242
    assert str(facts["workdir"]).endswith("/.edgebench")


def test_a_folder_of_somebody_else_is_not_used(lab: Lab) -> None:
    folder = lab.folder / "photos"
    folder.mkdir()
    (folder / "cat.jpg").touch()
    said = refusal(lab.device(lab.server(), workdir=str(folder)), transient=False)
    assert "(cat.jpg); choose a folder of its own." in said
    assert [path.name for path in folder.iterdir()] == ["cat.jpg"]


def test_a_locked_key_comes_from_the_agent(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    server = lab.server()
    (lab.home / ".ssh" / "id_ed25519").rename(lab.folder / "held")
    with agent(lab.folder, lab.folder / "held") as path:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        assert connected(lab.device(server))["user"]
        lab.config.write_text("Host *\n  IdentityAgent none\n")
        assert "nothing to offer" in refusal(lab.device(server), transient=False)


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_a_locked_key_is_opened_by_the_environment(
    lab: Lab, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = lab.server()
    locked = new_key(lab.folder / "locked", kind, "hunter2")
    server.authorize(locked)
    device = lab.device(server, identity=str(locked))
    text = refusal(device, transient=False)
    assert f"{locked} needs its passphrase" in text
    assert "EDGEBENCH_PASSPHRASE_PI5" in text
    monkeypatch.setenv("EDGEBENCH_PASSPHRASE_PI5", "hunter3")
    text = refusal(device, transient=False)
    assert "its passphrase is wrong" in text
    assert "hunter" not in text
    monkeypatch.setenv("EDGEBENCH_PASSPHRASE_PI5", "hunter2")
    assert connected(device)["user"]


def test_a_certificate(lab: Lab) -> None:
    import subprocess

    authority, key = new_key(lab.folder / "ca"), new_key(lab.folder / "signed")
    server = lab.server(f"TrustedUserCAKeys {authority}.pub")
    sign = ["ssh-keygen", "-q", "-s", str(authority), "-I", "test", "-n", server.user, f"{key}.pub"]
    subprocess.run(sign, check=True)
    assert connected(lab.device(server, identity=str(key)))["user"]
    assert "Accepted certificate" in server.log() or "ED25519-CERT" in server.log()


def test_a_password_of_the_environment_is_for_its_own_device_only(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    need("openssl")
    hashed = subprocess.run(
        ["openssl", "passwd", "-6", "hunter2"], capture_output=True, text=True, check=True
    )
    server = lab.ordinary("/bin/sh", hashed.stdout.strip(), "PasswordAuthentication yes")
    (server.folder / "authorized_keys").write_text("")
    device = lab.device(server)
    assert "does not let us in" in refusal(device, transient=False)
    monkeypatch.setenv("EDGEBENCH_PASSWORD_ORIN", "hunter2")
    assert "does not let us in" in refusal(device, transient=False)
    monkeypatch.setenv("EDGEBENCH_PASSWORD_PI5", "hunter2")
    assert connected(device)["uid"] == 4242


def test_through_a_chain_of_two_jump_hosts(lab: Lab) -> None:
    first, second, last = lab.server(), lab.server(), lab.server()
    jump = ",".join(f"{s.user}@127.0.0.1:{s.port}" for s in (first, second))
    assert connected(lab.device(last, jump=jump))["user"]
    assert "Accepted publickey" in first.log()
    assert "Accepted publickey" in second.log()


def test_proxyjump_of_ssh_config(lab: Lab) -> None:
    gate, last = lab.server(), lab.server()
    lab.config.write_text(
        f"Host gate\n HostName 127.0.0.1\n Port {gate.port}\n User {gate.user}\n"
        f"Host pi\n HostName 127.0.0.1\n Port {last.port}\n User {last.user}\n ProxyJump gate\n"
    )
    options = {"host": "pi", "workdir": str(lab.folder / "w")}
    assert connected(Device(name="pi5", transport="ssh", options=options))["user"]
    assert "Accepted publickey" in gate.log()


def test_proxycommand_of_ssh_config(lab: Lab) -> None:
    need("ssh")
    gate, last = lab.server(), lab.server()
    ssh_there = f"ssh -F none -i {lab.key} -o UserKnownHostsFile={lab.known_hosts} -p {gate.port}"
    lab.config.write_text(f"Host 127.0.0.1\n  ProxyCommand {ssh_there} -W %h:%p {gate.user}@127.0.0.1\n")
    assert connected(lab.device(last))["user"]
    assert "Accepted publickey" in gate.log()


def test_via_another_device(lab: Lab) -> None:
    gate, last = lab.server(), lab.server()
    fleet = {"gate": lab.device(gate, "gate"), "pi5": lab.device(last, via="gate")}
    assert connected(ssh.with_hops(fleet["pi5"], fleet))["user"]
    assert "Accepted publickey" in gate.log()


def test_a_jump_host_that_forbids_forwarding(lab: Lab) -> None:
    gate, last = lab.server("AllowTcpForwarding no"), lab.server()
    text = refusal(lab.device(last, jump=f"{gate.user}@127.0.0.1:{gate.port}"), transient=False)
    assert "AllowTcpForwarding" in text


def test_an_unknown_host_key(lab: Lab) -> None:
    server = lab.server(trusted=False)
    text = refusal(lab.device(server), transient=False)
    assert "is not known: ssh-ed25519 SHA256:" in text
    assert "edgebench devices trust pi5" in text
    assert "Accepted" not in server.log()


@pytest.mark.parametrize("config", ["", "Host *\n  StrictHostKeyChecking no\n"])
def test_a_changed_host_key_is_never_connected_to(lab: Lab, config: str) -> None:
    server = lab.server()
    lab.config.write_text(config)
    before = public(server.host_key)
    server.stop()
    server.host_key.unlink()
    new_key(server.host_key)
    server.start()
    text = refusal(lab.device(server), transient=False)
    assert public(server.host_key) != before
    assert "HAS CHANGED" in text
    assert text.count("SHA256:") == 2
    assert "Accepted" not in server.log()


def test_a_check_that_is_switched_off_in_ssh_config_stays_on(lab: Lab) -> None:
    server = lab.server(trusted=False)
    lab.config.write_text("Host *\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n")
    assert "is not known" in refusal(lab.device(server), transient=False)


def test_a_revoked_host_key(lab: Lab) -> None:
    server = lab.server()
    with lab.known_hosts.open("a") as file:
        file.write("@revoked * " + public(server.host_key) + "\n")
    assert "revoked" in refusal(lab.device(server), transient=False)


def test_hashed_and_wildcard_known_hosts(lab: Lab) -> None:
    import subprocess

    server = lab.server()
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(lab.known_hosts)], check=True, capture_output=True)
    assert "127.0.0.1" not in lab.known_hosts.read_text()
    assert connected(lab.device(server))["user"]
    lab.known_hosts.write_text(f"[127.0.*]:{server.port},other {public(server.host_key)}\n")
    assert connected(lab.device(server))["user"]
    lab.known_hosts.write_text(f"![127.0.0.1]:{server.port},[127.*]:* {public(server.host_key)}\n")
    assert "is not known" in refusal(lab.device(server), transient=False)


def test_a_wrong_user_key(lab: Lab) -> None:
    server = lab.server()
    stranger = new_key(lab.folder / "stranger")
    text = refusal(lab.device(server, identity=str(stranger)), transient=False)
    assert f"offered: {stranger}" in text
    assert f"ssh-copy-id -p {server.port} {server.user}@127.0.0.1;" in text


@pytest.mark.parametrize(
    ("host", "port", "command"),
    [
        ("pi.local", 22, "ssh-copy-id ann@pi.local"),
        ("pi.local", 2222, "ssh-copy-id -p 2222 ann@pi.local"),
        ("fe80::1", 2222, "ssh-copy-id -p 2222 ann@fe80::1"),
    ],
)
def test_how_a_key_is_brought_there(lab: Lab, host: str, port: int, command: str) -> None:
    device = Device(name="pi5", transport="ssh", options={"host": host, "port": port, "user": "ann"})
    assert _ssh_auth._copy_id(_ssh_config.route(device)[-1]) == command


def test_a_name_that_leads_nowhere(lab: Lab) -> None:
    device = Device(name="pi5", transport="ssh", options={"host": "no-such-host.invalid"})
    assert "leads to no address" in refusal(device, transient=False)


def test_a_port_that_is_closed(lab: Lab) -> None:
    device = Device(name="pi5", transport="ssh", options={"host": "127.0.0.1", "port": free_port()})
    assert "refuses the connection" in refusal(device, transient=True)


def test_a_host_that_says_nothing(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = {"host": "127.0.0.1", "port": silent.getsockname()[1], "connect_timeout_s": 0.5}
        text = refusal(Device(name="pi5", transport="ssh", options=options), transient=True)
        assert "did not greet" in text


def test_a_link_that_stalls_while_connecting(lab: Lab) -> None:
    server = lab.server()
    with proxy(server.port) as link:
        lab.trust(server, link.port)
        link.stall()
        device = lab.device(server, port=link.port, connect_timeout_s=0.5)
        refusal(device, transient=True)


@pytest.mark.parametrize(
    ("script", "said", "transient"),
    [
        (None, "there is no", False),
        ("#!/bin/sh\nexit 3\n", "ended with code 3", False),
        ("#!/bin/sh\necho Unknown option: -I >&2\nexit 2\n", "older than Python 3.4", False),
        ("#!/bin/sh\nwhile :; do echo rubbish; done\n", "prints without end", False),
    ],
)
def test_an_interpreter_that_is_none(lab: Lab, script: str | None, said: str, transient: bool) -> None:
    python = lab.folder / "python3"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    assert said in refusal(lab.device(lab.server(), python=str(python)), transient=transient)


def test_a_python_that_is_too_old(lab: Lab) -> None:
    python = lab.folder / "python3"
    python.write_text(
        "#!/bin/sh\n"
        'mark=$(printf %s "$4" | sed -n \'s/.*%("\\([0-9a-f]*\\)",sys.*/\\1/p\')\n'
        'printf "\\n%s 3 7 \'/usr/bin/python3\'\\n" "$mark"; sleep 1\n'
    )
    python.chmod(0o755)
    text = refusal(lab.device(lab.server(), python=str(python)), transient=False)
    assert "/usr/bin/python3 is Python 3.7; it must be 3.8 or newer" in text


@pytest.mark.parametrize("shell", ["sh", "bash", "dash", "zsh", "fish", "csh", "tcsh"])
def test_login_shells_that_print(lab: Lab, shell: str) -> None:
    need(shell)
    import shutil

    server = lab.ordinary(shutil.which(shell) or shell)
    home = lab.folder / "home0"
    for name in (".bashrc", ".profile", ".zshenv", ".cshrc", ".config/fish/config.fish"):
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("echo Welcome, you have mail\n")
    assert connected(lab.device(server))["uid"] == 4242


def test_a_login_shell_that_lets_nobody_in(lab: Lab) -> None:
    server = lab.ordinary("/usr/sbin/nologin")
    assert "did not start" in refusal(lab.device(server), transient=False)


def test_eight_servers_at_once(lab: Lab) -> None:
    from concurrent.futures import ThreadPoolExecutor

    devices = [lab.device(lab.server(), f"pi{number}") for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        facts = list(pool.map(connected, devices))
    assert {str(fact["workdir"]) for fact in facts} == {
        str(Path(lab.folder, "work", d.name)) for d in devices
    }
