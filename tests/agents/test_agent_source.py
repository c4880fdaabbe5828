"""agent.py runs where it is put: Python 3.8, one file, the standard library and a runtime's wheel."""

from __future__ import annotations

import ast
import sys
from types import ModuleType

from harness import session
from harness.core import events
from harness.core.types import RUNTIMES, STATUSES

WHEELS = {"numpy", "onnxruntime", "torch", "executorch"}
TREE = ast.parse(session.AGENT.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_it_is_python_3_8() -> None:
    """Parsing above is half of it; these calls came later than 3.8."""
    later = {"removeprefix", "removesuffix", "pairwise", "file_digest", "bit_count", "batched"}
    names = {node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute)}
    assert not names & later
    zips = [node for node in ast.walk(TREE) if isinstance(node, ast.Call) and ast.unparse(node.func) == "zip"]
    assert zips
    assert not [keyword for call in zips for keyword in call.keywords]


def test_it_imports_the_standard_library_and_runtimes_alone() -> None:
    found = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found.add((node.module or "").split(".")[0])
    assert found - WHEELS <= sys.stdlib_module_names
    top = {ast.unparse(node) for node in TREE.body if isinstance(node, (ast.Import, ast.ImportFrom))}
    assert not [line for line in top for wheel in WHEELS if wheel in line]


def test_it_uses_the_words_of_the_host(agent_module: ModuleType) -> None:
    statuses = {
        node.args[0].value
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Failure"
        if isinstance(node.args[0], ast.Constant)
    }
    assert len(statuses) >= 5
    assert statuses <= set(STATUSES)
    assert {name: engine[0] for name, engine in agent_module.ENGINES.items()} == dict(RUNTIMES)
    assert f"{events.PROTOCOL}" in [
        ast.unparse(keyword.value)
        for node in ast.walk(TREE)
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "protocol"
    ]


def test_it_calls_no_blas() -> None:
    """The idle threads of numpy's BLAS spin for a while after each product, beside what is timed next."""
    assert not [node for node in ast.walk(TREE) if isinstance(node, ast.MatMult)]
    names = {node.attr for node in ast.walk(TREE) if isinstance(node, ast.Attribute)}
    assert not names & {"dot", "vdot", "inner", "matmul", "einsum", "tensordot", "linalg"}
