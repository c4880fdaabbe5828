"""devices.yaml and recipes: what is wrong is named by file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import config
from harness.core import cpu_list
from harness.core.errors import UsageError
from harness.core.types import Device


def write(tmp_path: Path, text: str, name: str = "devices.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        config.load_devices(path)
    return str(caught.value)


def test_local_is_always_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert list(config.load_devices(None)) == ["local"]


def test_devices_are_read_with_tags(tmp_path: Path) -> None:
    fleet = config.load_devices(write(tmp_path, "devices:\n  desk: {transport: local, tags: [a, b]}\n"))
    assert fleet["desk"].tags == ("a", "b")
    assert [d.name for d in config.select_devices(fleet, ["a", "des*"])] == ["desk"]


def test_misspelt_key_names_file_line_and_likely_key(tmp_path: Path) -> None:
    path = write(tmp_path, "devices:\n  desk:\n    transport: local\n    tgas: [a]\n")
    text = refusal(path)
    assert f"{path}:4: unknown key 'tgas'." in text
    assert "Did you mean 'tags'?" in text


def test_misspelt_top_key(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, "device:\n  desk: {transport: local}\n"))
    assert ":1: unknown key 'device'." in text
    assert "Did you mean 'devices'?" in text


def test_unknown_transport_says_what_there_is(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, "devices:\n  pi:\n    transport: locla\n"))
    assert ":3: There is no transport 'locla'. Did you mean 'local'?" in text


def test_missing_transport(tmp_path: Path) -> None:
    assert "devices.pi.transport is missing" in refusal(write(tmp_path, "devices:\n  pi: {tags: [x]}\n"))


def test_key_given_twice(tmp_path: Path) -> None:
    text = refusal(write(tmp_path, "devices:\n  a: {transport: local}\n  a: {transport: local}\n"))
    assert ":3: the key 'a' is given twice." in text


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    assert "devices.yaml:3: this is not YAML" in refusal(write(tmp_path, "devices:\n  a: [1,\n"))


def test_missing_file(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "nowhere.yaml")


def test_unknown_device_says_the_likely_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no device 'locl'\. Did you mean 'local'\?"):
        config.select_devices(config.load_devices(write(tmp_path, "devices: {}\n")), ["locl"])


def test_shipped_recipes_load() -> None:
    for name in config.recipe_names():
        assert config.load_recipe(name).name == name


def test_unknown_recipe_says_the_likely_one() -> None:
    with pytest.raises(UsageError, match=r"no recipe 'int'\. Did you mean 'int8'\?"):
        config.load_recipe("int")


def test_same_steps_have_the_same_digest_whatever_their_name(tmp_path: Path) -> None:
    """Options left out and options written with their default are the same recipe."""
    steps = "steps:\n  - quantise: {scheme: static_int8}\n"
    one = config.load_recipe(str(write(tmp_path, f"name: one\n{steps}", "one.yaml")))
    two = config.load_recipe(str(write(tmp_path, "name: two\nsteps: [quantise]\n", "two.yaml")))
    assert one.digest == two.digest


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: x\nsteps:\n  - quantise: {shceme: a}\n", "r.yaml:3: unknown key 'shceme'."),
        ("name: x\nsteps:\n  - quantize: {}\n", "r.yaml:3: There is no pass 'quantize'."),
        ("name: x\nstesp: []\n", "r.yaml:2: unknown key 'stesp'."),
        ("steps: []\n", "name is missing"),
        ("name: x\nsteps:\n  - quantise: {}\n    finetune: {}\n", "r.yaml:3: step 1 names 2 passes"),
        ("name: x\nsteps:\n  - prune_channels: {ratio: 3}\n", "steps.0.prune_channels.ratio: input should"),
    ],
)
def test_bad_recipes(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        config.load_recipe(str(write(tmp_path, text, "r.yaml")))
    assert said in str(caught.value)


def devices(tmp_path: Path, text: str) -> dict[str, Device]:
    return config.load_devices(write(tmp_path, "devices:\n" + text))


def test_settings_are_read(tmp_path: Path) -> None:
    entry = (
        '  pi: {transport: local, governor: performance, power_mode: 0, clocks: max, affinity: "3, 0-1"'
        ", sudo: true, emulated: true}\n"
    )
    pi = devices(tmp_path, entry)["pi"]
    assert pi.settings == {
        "governor": "performance",
        "power_mode": 0,
        "clocks": "max",
        "affinity": "0-1,3",
        "sudo": True,
    }
    assert pi.emulated
    plain = devices(tmp_path, "  pi: {transport: local}\n")["pi"]
    assert (plain.settings, plain.emulated) == ({}, False)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("affinity: 3-1", "is no range of CPUs"),
        ("affinity: all", "is no CPU and no range of CPUs"),
        ('affinity: ""', "is no CPU"),
        ("clocks: fast", "clocks: input should be 'max'"),
        ("governor: 'x; reboot'", "governor: string should match pattern"),
        ("power_mode: -1", "power_mode"),
        ("power_mode: 'a b'", "power_mode"),
        ("governer: x", "Did you mean 'governor'?"),
    ],
)
def test_bad_settings_name_line_and_key(tmp_path: Path, entry: str, said: str) -> None:
    text = refusal(write(tmp_path, f"devices:\n  pi:\n    transport: local\n    {entry}\n"))
    assert ":4: " in text
    assert said in text


@pytest.mark.parametrize("name", ['""', '"  "', r'"a\nb"', r'"\e[31m"', "x" * 65])
def test_names_that_cannot_be_shown_on_one_line_are_refused(tmp_path: Path, name: str) -> None:
    text = refusal(write(tmp_path, f"devices:\n  {name}: {{transport: local}}\n"))
    assert ":2: " in text
    assert "cannot be a device's name" in text


def test_a_name_that_looks_like_a_glob_means_itself(tmp_path: Path) -> None:
    fleet = devices(
        tmp_path, "  '*': {transport: local}\n  pi[1]: {transport: local}\n  pi1: {transport: local}\n"
    )
    assert [d.name for d in config.select_devices(fleet, ["*"])] == ["*"]
    assert [d.name for d in config.select_devices(fleet, ["pi[1]"])] == ["pi[1]"]
    assert [d.name for d in config.select_devices(fleet, ["pi?"])] == ["pi1"]


def test_the_whole_file_is_what_it_names(tmp_path: Path) -> None:
    path = write(tmp_path, "devices:\n  pi: {transport: local}\n")
    assert list(config.load_devices(path, this_machine=False)) == ["pi"]
    assert list(config.load_devices(path)) == ["local", "pi"]


def test_cpu_lists_come_back_as_they_were() -> None:
    assert cpu_list.parse("0-2, 5") == (0, 1, 2, 5)
    assert cpu_list.text([5, 0, 2, 1, 1]) == "0-2,5"


@pytest.mark.parametrize(
    ("via", "said"),
    [
        ("lba", "which is no device"),
        ("here", "transport is not ssh"),
        ("pi", "in a circle"),
        ("other", "in a circle"),
    ],
)
def test_a_way_that_does_not_exist_names_file_and_line(tmp_path: Path, via: str, said: str) -> None:
    text = "devices:\n  here: {transport: local}\n  other: {transport: ssh, host: o, via: pi}\n"
    text = refusal(write(tmp_path, f"{text}  pi: {{transport: ssh, host: p, via: {via}}}\n"))
    assert ":3: " in text or ":4: " in text
    assert said in text


def test_a_chain_of_devices_is_looked_up(tmp_path: Path) -> None:
    hosts = "".join(f"  {n}: {{transport: ssh, host: {n}.lab{v}}}\n" for n, v in HOPS.items())
    board = devices(tmp_path, hosts)["board"]
    assert [name for name, _ in board.options["hops"]] == ["gate", "rack"]


HOPS = {"board": ", via: rack", "rack": ", via: gate", "gate": ""}
