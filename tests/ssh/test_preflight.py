"""``edgebench bench`` looks at its devices before it builds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness import cli, pipeline, preflight
from harness.core.errors import DeviceError, UsageError
from harness.core.types import Device
from tests.ssh.servers import Lab, free_port


def bench(lab: Lab, devices: Sequence[Device]) -> int:
    """A bench that ends with 4 where it would build, and the sentences of its devices."""
    path = lab.folder / "devices.yaml"
    entries = {device.name: {"transport": "ssh", **device.options} for device in devices}
    path.write_text(json.dumps({"devices": entries}))
    argv = ["bench", "--model", "digits_cnn", "--fleet", str(path), "--out", str(lab.folder / "results")]
    return cli.run([*argv, "--cache", str(lab.folder / "cache"), "--all"])


@pytest.fixture(autouse=True)
def nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> object:
        raise UsageError("It would build now.")

    monkeypatch.setattr(pipeline, "build_files", build)


def strange(lab: Lab, name: str) -> Device:
    return lab.device(lab.server(trusted=False), name)


def test_one_device_that_is_not_trusted_ends_it(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(lab, [strange(lab, "pi5")]) == 2
    err = capsys.readouterr().err
    assert err.count("the host key of") == 1
    assert "edgebench devices trust pi5" in err
    assert not (lab.folder / "results").exists()
    assert not (lab.folder / "work" / "pi5").exists()


def test_no_device_that_can_be_measured_ends_it(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = Device(name="moon", transport="ssh", options={"host": "no-such-host.invalid"})
    assert bench(lab, [strange(lab, "pi5"), nowhere]) == 2
    err = capsys.readouterr().err
    assert "edgebench devices trust pi5" in err
    assert "moon" in err
    assert "leads to no address" in err
    assert "None of the 2 devices" in err
    assert not (lab.folder / "results").exists()


@pytest.mark.parametrize("other", ["answers", "does not answer now"])
def test_where_some_may_be_measured_it_goes_on(
    lab: Lab, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good = lab.server()
    second = lab.device(good, "two", **({} if other == "answers" else {"port": free_port()}))
    assert bench(lab, [strange(lab, "pi5"), second]) == 4
    err = capsys.readouterr().err
    assert "It would build now" in err
    assert "edgebench devices trust pi5" in err
    assert ("refuses the connection" in err) == (other != "answers")


def test_a_device_in_use_is_reached_and_this_machine_is_not_asked(lab: Lab, tmp_path: Path) -> None:
    from harness.transports import ssh

    device = lab.device(lab.server())
    holder = ssh.connect(device)
    owner = {"user": "ann", "host": "desk", "pid": 7, "run": "night"}
    holder.call("lease", action="take", owner=owner, period_s=60.0)
    here = Device(name="local", transport="local", options={"workdir": str(tmp_path / "w")})
    try:
        assert preflight.failures([device, here]) == {}
    finally:
        holder.call("lease", action="release", owner=owner, period_s=60.0)
        holder.close()
    assert not (tmp_path / "w").exists()


def test_this_machine_can_be_measured_when_no_other_can(lab: Lab) -> None:
    said: list[str] = []
    away = strange(lab, "pi5")
    preflight.check([away, Device(name="local", transport="local", options={})], said.append)
    assert len(said) == 1
    with pytest.raises(DeviceError, match="host key"):
        preflight.check([away], said.append)
    assert len(said) == 1
