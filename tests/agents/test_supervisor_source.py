"""What is sent to a device runs there: Python 3.8, the standard library, what is sent along."""

from __future__ import annotations

import ast
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import device_agents
from harness.transports._wire import MODULES, READER, bootstrap_bytes, bootstrap_command

FOLDER = Path(device_agents.__file__).parent
SENT = [name for name in MODULES if (FOLDER / f"{name}.py").exists()]
LATER = {"removeprefix", "removesuffix", "pairwise", "file_digest", "bit_count", "batched", "pidfd_open"}


def tree(name: str) -> ast.Module:
    return ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_supervisor_comes_last() -> None:
    assert {"keeper", "files", "lease", "supervisor"} <= set(SENT)
    assert SENT[-1] == "supervisor"


@pytest.mark.parametrize("name", SENT)
def test_it_is_python_3_8(name: str) -> None:
    """Parsing is half of it; these calls came later than 3.8."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute):
            assert node.attr not in LATER
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "zip":
            assert not node.keywords
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Popen"):
            assert not {"process_group", "user"} & {keyword.arg for keyword in node.keywords}


@pytest.mark.parametrize("name", SENT)
def test_it_imports_what_is_there(name: str) -> None:
    before = set(MODULES[: MODULES.index(name)])
    for node in ast.walk(tree(name)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names = [node.module or ""]
        for found in names:
            assert found.split(".")[0] in sys.stdlib_module_names | before


def test_any_login_shell_passes_the_reader_on() -> None:
    assert not set(READER) & set("'\"\n!$`\\")
    argv = bootstrap_command("python3")
    for shell in filter(None, map(shutil.which, ("sh", "bash", "dash", "zsh", "csh", "fish"))):
        done = subprocess.run([shell, "-c", "echo " + shlex.join(argv)], capture_output=True, text=True)
        assert done.stdout.strip() == " ".join(argv)


def test_nothing_of_it_is_in_the_process_list() -> None:
    """A process list shows the reader alone: what is sent, and what is asked later, is in no argv."""
    assert len(" ".join(bootstrap_command("python3"))) < 200
    assert b"def serve" in bootstrap_bytes()
