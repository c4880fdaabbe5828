"""A device of this machine is provisioned from hand-made wheels, through the real supervisor."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import debian, parts, provisioning, runners, trying, wheels
from harness.core import codec
from harness.core.errors import DeviceError, EdgebenchError
from harness.core.types import Device
from harness.provisioning import Provisioned
from harness.transports import local
from harness.transports.local import Local
from harness.wheels import NoWheel
from tests.harness import wheelhouse

FACTS = {
    "arch": platform.machine(),
    "python": platform.python_version(),
    "libc": " ".join(platform.libc_ver()),
}
MACHINE = f"manylinux2014_{platform.machine()}"
PI = Device(name="pi", transport="local")
ANSWERS = '#!/bin/sh\nls "$LD_LIBRARY_PATH" >&2\necho \'{"event":"end","status":"ok"}\'\n'


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(wheels, "host_version", lambda _: None)
    house = wheelhouse.alone(monkeypatch, tmp_path / "house")
    for name in ("numpy", "onnxruntime", "ai-edge-litert"):
        wheelhouse.make(house, name, "99.1", platform=MACHINE, requires=() if name == "numpy" else ["numpy"])
    content = {f"executorch/lib/lib{name}.so": name for name in runners.LIBRARIES}
    content["executorch/include/executorch/a.h"] = "// a header"
    wheelhouse.make(house, "executorch", "99.1", platform=MACHINE, files=content)
    return house


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that makes a script which answers; nothing needs a new glibc."""
    program = tmp_path / "run_executorch-0123"
    program.write_text(ANSWERS)

    def cross(machine: str, wheel: Path, version: str, cache: Path) -> runners.Runner:
        return runners.Runner(path=program, library_dir=wheel.parent / "executorch/lib", version=version)

    monkeypatch.setattr(runners, "cross", cross)
    monkeypatch.setattr(runners, "glibc_needed", lambda _: (2, 17))
    return program


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Local]:
    found = local.connect(
        Device(name="pi", transport="local", options={"workdir": str(tmp_path / "a device")})
    )
    yield found
    found.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that knows the wheels of ``house`` after the first test: for tests that make no others."""
    return tmp_path_factory.mktemp("shared")


def provision(device: Local, cache: Path, facts: Mapping[str, str] = FACTS, **options: Any) -> Provisioned:
    lines: list[str] = []
    done = provisioning.provision(PI, device, facts, cache, lines.append, **options)
    assert len(lines) >= 3
    return done


def files(device: Local) -> set[str]:
    root = Path(device.workdir)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_everything_is_put_there_and_works(
    tmp_path: Path, house: Path, compiled: Path, device: Local
) -> None:
    done = provision(device, tmp_path / "cache")
    assert done.missing == {}
    assert done.runtimes == {"onnxruntime": "99.1", "litert": "99.1", "executorch": "99.1"}
    assert done.pushed_files == 5  # numpy, two runtimes, the runner, the manifest
    assert done.pushed_bytes > 0
    assert done.downloaded_bytes == sum(path.stat().st_size for path in house.glob("*.whl"))
    assert not [name for name in files(device) if name.endswith(".zip")]


def test_the_manifest_says_how_they_are_started(
    house: Path, compiled: Path, device: Local, shared: Path
) -> None:
    manifest = provision(device, shared).manifest
    assert provisioning.installed(device) == manifest
    assert codec.from_json(provisioning.Manifest, codec.to_json(manifest)) == manifest
    assert manifest.made_for(platform.python_version())
    assert not manifest.made_for("3.1.4")
    folders = manifest.python_env()["PYTHONPATH"].split(":")
    assert len(folders) == 3
    assert all(Path(folder).is_relative_to(device.workdir) for folder in folders)
    done = trying.run(
        device, [sys.executable, "-c", "import numpy; print(numpy.__file__)"], manifest.python_env()
    )
    assert done.out.startswith(device.workdir)
    ran = trying.run(device, manifest.runner_argv(), manifest.runner_env())
    assert ran.err.split() == sorted(f"lib{name}.so" for name in runners.LIBRARIES)


def test_the_second_call_sends_nothing(house: Path, compiled: Path, device: Local, shared: Path) -> None:
    first = provision(device, shared)
    before = files(device)
    second = provision(device, shared)
    assert (second.pushed_bytes, second.pushed_files, second.downloaded_bytes) == (0, 0, 0)
    assert second.manifest == first.manifest
    assert files(device) == before


def test_only_what_is_new_is_sent(
    tmp_path: Path, house: Path, compiled: Path, device: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = provision(device, tmp_path / "cache").manifest
    wheelhouse.make(house, "onnxruntime", "99.2", platform=MACHINE, requires=["numpy"])
    monkeypatch.setattr(wheels, "host_version", lambda name: "99.2" if name == "onnxruntime" else None)
    done = provision(device, tmp_path / "cache")
    assert done.runtimes["onnxruntime"] == "99.2"
    assert done.pushed_files == 2  # and the manifest
    (gone,) = set(old.folders) - set(done.manifest.folders)
    assert not Path(device.workdir, gone).exists()


def test_remove_leaves_nothing(house: Path, compiled: Path, device: Local, shared: Path) -> None:
    done = provision(device, shared)
    size, stay = provisioning.remove(device)
    assert size >= sum(done.manifest.folders.values())
    assert stay == ()
    assert not Path(device.workdir).exists()


def test_only_the_runtimes_that_are_asked_for(
    house: Path, compiled: Path, device: Local, shared: Path
) -> None:
    provision(device, shared)
    done = provision(device, shared, runtimes=["executorch"])
    assert done.runtimes == {"executorch": "99.1"}
    assert done.manifest.python_env() == {}
    assert len(done.manifest.folders) == 1


def test_a_runtime_without_a_wheel_says_so_and_the_others_are_there(
    tmp_path: Path, house: Path, compiled: Path, device: Local
) -> None:
    next(house.glob("onnxruntime-*")).unlink()
    done = provision(device, tmp_path / "cache")
    assert set(done.runtimes) == {"litert", "executorch"}
    assert done.missing["onnxruntime"].startswith("onnxruntime has no wheel for Python")


def test_a_runtime_that_does_not_import_says_the_first_cause(
    tmp_path: Path, house: Path, compiled: Path, device: Local
) -> None:
    code = "try:\n    import no_such_thing\n"
    code += "except ImportError as e:\n    raise ImportError('Sorry.\\n\\nRead') from e"
    wheelhouse.make(house, "onnxruntime", "99.2", platform=MACHINE, files={"onnxruntime/__init__.py": code})
    done = provision(device, tmp_path / "cache")
    why = "onnxruntime does not import on the device: ModuleNotFoundError: No module named 'no_such_thing'"
    assert done.missing == {"onnxruntime": why}
    assert len(done.manifest.site) == 2  # what does not work is on no path
    assert provision(device, tmp_path / "cache").pushed_bytes == 0


def test_a_damaged_device_is_mended(house: Path, compiled: Path, device: Local, shared: Path) -> None:
    manifest = provision(device, shared).manifest
    for path in Path(device.workdir).rglob("onnxruntime/__init__.py"):
        path.write_text("raise OSError('bad block')")
    done = provision(device, shared)
    assert done.missing == {}
    assert done.pushed_files > 0
    assert done.manifest == manifest


def test_a_runner_that_needs_a_newer_glibc_is_not_sent(
    house: Path, compiled: Path, device: Local, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "glibc_needed", lambda _: (2, 99))
    done = provision(device, shared)
    have = FACTS["libc"].split()[1]
    assert done.missing == {"executorch": f"executorch 99.1 needs glibc 2.99, the device has {have}"}


def test_a_runner_that_does_not_start_is_a_reason(
    house: Path, compiled: Path, device: Local, shared: Path
) -> None:
    compiled.write_text("#!/bin/sh\nkill -ILL $$\n")
    done = provision(device, shared)
    assert done.missing == {
        "executorch": "the native runner does not start on the device: SIGILL (4) ended it"
    }
    assert done.manifest.runner is None
    assert done.manifest.runner_argv() == []


def test_without_a_compiler_here_the_device_compiles(
    tmp_path: Path, house: Path, device: Local, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "compiler_for", lambda _: runners.NoRunner(reason="no g++ on this machine"))
    folder = tmp_path / "bin"
    folder.mkdir()
    script = (
        f'[ "$1" = --version ] && exit 0\nwhile [ "$1" != -o ]; do shift; done\ncp {tmp_path}/answers "$2"\n'
    )
    (folder / "g++").write_text(f"#!/bin/sh\n{script}")
    (folder / "g++").chmod(0o755)
    (tmp_path / "answers").write_text(ANSWERS)
    (tmp_path / "answers").chmod(0o755)
    monkeypatch.setitem(trying.ENVIRONMENT, "PATH", f"{folder}:/usr/bin:/bin")
    done = provision(device, shared)
    assert done.missing == {}
    assert {"run_executorch.cpp", "a.h"} <= {Path(name).name for name in files(device)}
    (tmp_path / "answers").unlink()  # it is compiled once
    assert provision(device, shared).runtimes["executorch"] == "99.1"


def test_no_compiler_anywhere_names_the_package(
    tmp_path: Path, house: Path, device: Local, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(trying.ENVIRONMENT, "PATH", str(tmp_path))
    done = provision(device, shared)
    assert done.missing["executorch"] == (
        "no g++ on this machine: sudo apt install g++; nor has the device a g++"
    )


def test_too_little_space_is_told_before_anything_is_sent(
    house: Path, compiled: Path, device: Local, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Local.call

    def full(self: Local, method: str, /, **arguments: Any) -> dict[str, Any]:
        facts = real(self, method, **arguments)
        return facts | {"free_bytes": 1000} if method == "hello" else facts

    monkeypatch.setattr(Local, "call", full)
    with pytest.raises(DeviceError, match="pi has 1000 B free"):
        provision(device, shared)
    assert not [name for name in files(device) if name.startswith(("files/", "site/"))]


def test_a_device_without_numpy_wheels_uses_its_own(
    tmp_path: Path, house: Path, compiled: Path, device: Local
) -> None:
    next(house.glob("numpy-*")).unlink()  # the Python of the tests has a real one
    done = provision(device, tmp_path / "cache")
    assert set(done.runtimes) == {"onnxruntime", "litert", "executorch"}
    assert done.notes["numpy"].startswith("the device's own")


def test_no_numpy_at_all_names_the_package(
    tmp_path: Path, house: Path, compiled: Path, device: Local, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("numpy", "onnxruntime", "ai_edge_litert"):
        next(house.glob(f"{name}-*")).unlink()
    wheelhouse.make(house, "tflite-runtime", "99.1", platform=MACHINE, requires=["numpy>=1.23"])
    asked: list[str] = []
    monkeypatch.setattr(debian, "numpy", lambda *_: NoWheel(reason="no apt-get here"))
    real = trying.run

    def without_numpy(transport: Any, argv: Any, *rest: Any, **options: Any) -> trying.Done:
        if "numpy.__version__" in argv[-1]:
            asked.append(argv[-1])
            return trying.Done(exit_code=1, timed_out=False, out="", err="No module named 'numpy'")
        return real(transport, argv, *rest, **options)

    monkeypatch.setattr(trying, "run", without_numpy)
    done = provision(device, tmp_path / "cache")
    assert asked
    assert "sudo apt install python3-numpy" in done.missing["litert"]
    assert "no apt-get here" in done.missing["litert"]


def test_a_32_bit_arm_device_gets_what_there_is(
    tmp_path: Path, house: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan alone: such a device is not here."""
    wheelhouse.make(house, "tflite-runtime", "2.14.0", python="cp311", platform="manylinux_2_34_armv7l")
    target = wheels.Target(machine="armv7l", python=(3, 11), glibc=(2, 36))
    archive = tmp_path / "numpy.zip"
    wheels.pack(archive, [("numpy/__init__.py", b""), ("lib/libblas.so.3", b"")])
    monkeypatch.setattr(debian, "numpy", lambda *_: debian.Numpy(path=archive, version="1.24.2"))
    system = parts.System(codename="bookworm", own_numpy=lambda: None, has_compiler=lambda: False)
    plan = parts.plan(target, system, parts.RUNTIMES, tmp_path / "cache")
    assert plan.packages == {"litert": "tflite-runtime"}
    assert [(part.package, part.library_dir) for part in plan.parts] == [
        ("tflite-runtime", ""),
        ("numpy", "lib"),
    ]
    assert plan.missing["executorch"] == "executorch has no wheel for armv7l"
    assert "onnxruntime has no wheel" in plan.missing["onnxruntime"]
    new = replace(system, own_numpy=lambda: "2.1.0")  # tflite-runtime was made for numpy 1
    assert len(parts.plan(target, new, ["litert"], tmp_path / "cache").parts) == 2
    own = replace(system, own_numpy=lambda: "1.26.4")
    assert len(parts.plan(target, own, ["litert"], tmp_path / "cache").parts) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema": 2}'])
def test_a_manifest_that_is_not_understood_is_none(text: str, tmp_path: Path, device: Local) -> None:
    path = tmp_path / "text"
    path.write_text(text)
    device.push(path, provisioning.MANIFEST)
    assert provisioning.installed(device) is None


def test_a_manifest_of_another_folder_is_none(
    tmp_path: Path, house: Path, compiled: Path, device: Local, shared: Path
) -> None:
    manifest = provision(device, shared).manifest
    path = tmp_path / "text"
    path.write_text(json.dumps(codec.to_json(replace(manifest, workdir="/elsewhere"))))
    device.push(path, provisioning.MANIFEST)
    assert provisioning.installed(device) is None


def test_a_device_that_cannot_be_provisioned_says_why(device: Local, shared: Path) -> None:
    with pytest.raises(EdgebenchError, match="wheels need glibc"):
        provision(device, shared, FACTS | {"libc": ""})


def test_a_runner_that_does_not_compile_leaves_the_others(
    house: Path, compiled: Path, device: Local, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise EdgebenchError("The native ExecuTorch runner does not compile: x.cpp:1: error: boom")

    monkeypatch.setattr(runners, "cross", broken)
    done = provision(device, shared)
    assert set(done.runtimes) == {"onnxruntime", "litert"}
    assert "error: boom" in done.missing["executorch"]


@pytest.mark.parametrize("separator", [":", ";"])
def test_a_folder_that_no_path_can_name_is_refused(
    house: Path, tmp_path: Path, shared: Path, separator: str
) -> None:
    device = local.connect(replace(PI, options={"workdir": str(tmp_path / f"a{separator}b")}))
    try:
        with pytest.raises(DeviceError, match=f"has a '{separator}' in it"):
            provision(device, shared)
    finally:
        device.close()
