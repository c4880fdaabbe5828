"""The native runner is compiled once per content, whole or not at all."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness import runners
from harness.core.errors import EdgebenchError
from harness.runners import NoRunner, Runner

ROOT = Path(__file__).resolve().parents[2]


def compiler(folder: Path, does: str) -> Path:
    """A g++ in *folder* that counts its calls and then *does*; it has the version of the real one."""
    folder.mkdir(exist_ok=True)
    path = folder / "g++"
    path.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && exec {shutil.which("g++")} --version\n'
        f'echo called >> "{folder}/calls"\n'
        f"{does}\n"
    )
    path.chmod(0o755)
    return path


def calls(folder: Path) -> int:
    path = folder / "calls"
    return path.read_text().count("called") if path.exists() else 0


#: Writes a file where a real g++ would, without its seconds of work.
PRETEND = 'while [ "$1" != -o ]; do shift; done; cp /bin/true "$2"'


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    compiler(folder, PRETEND)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def made(cache: Path) -> Runner:
    runner = runners.executorch(cache)
    assert isinstance(runner, Runner)
    return runner


def test_a_real_one_runs_and_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners, "FLAGS", (*runners.FLAGS, "-Werror"))
    runner = made(tmp_path)
    done = subprocess.run(
        [str(runner.path), "mode=probe"],
        env={"LD_LIBRARY_PATH": str(runner.library_dir)},
        capture_output=True,
        text=True,
        check=True,
    )
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    assert {"event": "fact", "name": "runtimes", "value": {"executorch": runner.version}} in facts
    assert sorted(path.suffix for path in runner.path.parent.iterdir()) == ["", ".lock"]


def test_it_is_compiled_once(tmp_path: Path, pretend: Path) -> None:
    assert made(tmp_path).path == made(tmp_path).path
    assert calls(pretend) == 1


def test_two_processes_compile_it_once(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    compiler(folder, f"sleep 1; {PRETEND}")
    code = "import sys; from harness import runners; from pathlib import Path\n"
    code += "print(runners.executorch(Path(sys.argv[1])).path)"
    argv = [sys.executable, "-c", code, str(tmp_path / "cache")]
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    processes = [
        subprocess.Popen(argv, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    paths = [process.communicate(timeout=60)[0] for process in processes]
    assert paths[0] == paths[1]
    assert Path(paths[0].strip()).exists()
    assert calls(folder) == 1


@pytest.mark.parametrize("name", ["run_executorch.cpp", "device.h"])
def test_a_changed_source_is_compiled_again(
    name: str, tmp_path: Path, pretend: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Headers too."""
    before = made(tmp_path).path
    copy = tmp_path / "sources"
    shutil.copytree(runners.SOURCES, copy)
    monkeypatch.setattr(runners, "SOURCES", copy)
    assert made(tmp_path).path == before
    with (copy / name).open("a") as file:
        file.write("// changed\n")
    assert made(tmp_path).path != before
    assert calls(pretend) == 2


def test_no_compiler_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = runners.executorch(tmp_path)
    assert isinstance(found, NoRunner)
    assert "g++" in found.reason


def test_no_wheel_is_a_reason(tmp_path: Path, pretend: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert isinstance(runners.executorch(tmp_path), NoRunner)
    monkeypatch.undo()


def test_a_library_that_the_wheel_lacks_is_a_reason(
    tmp_path: Path, pretend: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runners, "LIBRARIES", (*runners.LIBRARIES, "no_such"))
    found = runners.executorch(tmp_path)
    assert isinstance(found, NoRunner)
    assert "libno_such.so" in found.reason


def test_a_compiler_that_fails_is_an_error_with_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bin"
    compiler(folder, "echo 'In file x:' >&2; echo 'x.cpp:1:2: error: boom' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(EdgebenchError, match=r"x\.cpp:1:2: error: boom") as caught:
        runners.executorch(tmp_path / "cache")
    assert "run_executorch.cpp" in caught.value.hint
    assert [path.suffix for path in (tmp_path / "cache" / "runners").iterdir()] == [".lock"]


def test_finding_the_wheel_imports_neither_it_nor_torch(tmp_path: Path, pretend: Path) -> None:
    code = (
        "import sys, pathlib; from harness import runners; runners.executorch(pathlib.Path(sys.argv[1]))\n"
        "print([name for name in ('executorch', 'torch', 'numpy') if name in sys.modules])"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert calls(pretend) == 1


#: Has what pulls new symbols in: a global constructor, and a counter that is shared by threads.
PROGRAM = """
#include <cstdio>
#include <memory>
static std::shared_ptr<int> value = std::make_shared<int>(42);
int main(int argc, char**) {
  std::shared_ptr<int> copy = value;
  std::printf("%d %d", *copy, argc);
}
"""


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_a_portable_program_starts_on_old_systems(machine: str, tmp_path: Path) -> None:
    compiler = runners.compiler_for(machine)
    if isinstance(compiler, NoRunner):
        pytest.skip(compiler.reason)
    (tmp_path / "program.cpp").write_text(PROGRAM)
    made = tmp_path / "program"
    sources = [str(tmp_path / "program.cpp"), str(runners.SOURCES / "old_glibc.cpp")]
    argv = [compiler, *runners.FLAGS, "-Werror", *sources, "-o", str(made), *runners.PORTABLE]
    subprocess.run(argv, check=True)
    assert (2,) < runners.glibc_needed([made]) <= (2, 17)
    if machine == platform.machine():
        assert subprocess.run([made], capture_output=True, text=True).stdout == "42 1"


def test_a_runner_for_a_device_runs_here_and_needs_no_new_glibc(tmp_path: Path) -> None:
    """The installed wheel, packed again, is that of a device like this machine."""
    installed = executorch_folder()
    wheel = tmp_path / "wheel" / "executorch.whl"
    wheel.parent.mkdir()
    paths = [path for name in ("include", "lib") for path in (installed / name).rglob("*") if path.is_file()]
    with zipfile.ZipFile(wheel, "w") as file:
        for path in paths:
            file.write(path, f"executorch/{path.relative_to(installed)}")
    runner = runners.cross(platform.machine(), wheel, "9.9", tmp_path / "cache")
    assert isinstance(runner, Runner)
    libraries = [runner.library_dir / f"lib{name}.so" for name in runners.LIBRARIES]
    assert sorted(runner.library_dir.iterdir()) == sorted(libraries)  # and no more
    assert runners.glibc_needed([runner.path]) <= (2, 17)
    assert runners.glibc_needed([runner.path, *libraries]) <= (2, 28)
    env = {"LD_LIBRARY_PATH": str(runner.library_dir)}
    done = subprocess.run([runner.path, "mode=probe"], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == '{"event":"end","status":"ok"}'
    assert runners.cross(platform.machine(), wheel, "9.9", tmp_path / "cache") == runner


def test_no_compiler_for_another_machine_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    found = runners.compiler_for("aarch64")
    assert isinstance(found, NoRunner)
    assert "apt install g++-aarch64-linux-gnu" in found.reason
    assert runners.compiler_for("riscv64") == NoRunner(reason="no compiler for riscv64 is known")


def executorch_folder() -> Path:
    spec = importlib.util.find_spec("executorch")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))
