"""The house rules that can be checked: imports point down, heavy packages load late, files stay small."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("harness", "compressors", "device_agents")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SOURCES = MODULES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "benchmarks").rglob("*.py"))

#: What a module may import of ours: the longest matching name decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "harness": (),
    "harness.__main__": ("harness.cli",),
    "harness.cli": ("harness", "harness.core"),
    "harness.commands": ("harness",),
    "harness.pipeline": (
        "harness",
        "harness.core",
        "harness.building",
        "harness.config",
        "harness.measuring",
        "harness.preflight",
        "harness.progress",
        "harness.session",
        "harness.store",
        "compressors.build",
    ),
    "harness.preflight": ("harness.core",),
    "harness.building": ("harness.core", "compressors.build"),
    "harness.measuring": (
        "harness",
        "harness.core",
        "harness.retrying",
        "harness.session",
        "harness.store",
        "harness.unpacking",
    ),
    "harness.unpacking": ("harness.core", "harness.session", "device_agents"),
    "harness.retrying": ("harness.core", "harness.store"),
    "harness.session": (
        "harness",
        "harness.core",
        "harness.agent_process",
        "harness.leasing",
        "harness.probing",
        "harness.provisioning",
        "harness.runners",
        "harness.taking_turns",
        "harness.transports",
        "device_agents",
    ),
    "harness.doctor": (
        "harness",
        "harness.core",
        "harness.agent_process",
        "harness.diagnosis",
        "harness.leasing",
        "harness.parts",
        "harness.provisioning",
        "harness.session",
        "harness.transports",
        "harness.wheels",
    ),
    "harness.diagnosis": ("harness.core",),
    "harness.probing": ("harness.core", "device_agents"),
    "harness.wheels": ("harness.core",),
    "harness.debian": ("harness.core", "harness.wheels"),
    "harness.parts": ("harness", "harness.core", "harness.debian", "harness.runners", "harness.wheels"),
    "harness.trying": ("harness", "harness.core", "harness.parts", "harness.runners", "harness.transports"),
    "harness.provisioning": (
        "harness",
        "harness.core",
        "harness.parts",
        "harness.transports",
        "harness.trying",
        "harness.wheels",
    ),
    "harness.agent_process": ("harness.core", "harness.transports"),
    "harness.leasing": ("harness.core", "harness.transports"),
    "harness.taking_turns": ("harness.core",),
    "harness.runners": ("harness.core", "device_agents"),
    "harness.store": ("harness.core",),
    "harness.progress": ("harness.core",),
    "harness.config": ("harness", "harness.core", "harness.yaml_lines"),
    "harness.yaml_lines": ("harness.core",),
    "harness.describe": (),
    "harness.metrics": ("harness.core",),
    "harness.energy": (),
    "harness.judging": ("harness.core",),
    "harness.compare": ("harness.core", "harness.metrics"),
    "harness.ranking": ("harness.core", "harness.metrics", "harness.compare"),
    "harness.reports": ("harness.core", "harness.metrics", "harness.compare", "harness.ranking"),
    "harness.transports": ("harness.core", "device_agents"),
    "harness.meters": ("harness.core",),
    "harness.core": ("harness.core",),
    "compressors": ("harness.core", "compressors"),
    "compressors.container": ("harness.core", "compressors", "device_agents"),  # what it packs, it unpacks
    "device_agents": (),
}
#: Folders of plugins: a plugin imports no sibling, only its package and its package's _private modules.
PLUGINS = (
    "harness.commands",
    "harness.transports",
    "harness.meters",
    "harness.reports",
    "compressors.passes",
    "compressors.formats",
    "compressors.tasks",
)
HEAVY = {"torch", "torchao", "executorch", "onnx", "onnxruntime", "onnxscript", "litert_torch"}
HEAVY |= {"ai_edge_litert", "numpy", "pandas", "scipy", "sklearn", "plotly", "torch_pruning"}
HEAVY |= {"paramiko", "cryptography", "nacl", "bcrypt"}
HEAVY |= {"tensorly", "transformers", "optuna"}
MAY_BE_HEAVY = ("compressors.passes", "compressors.formats", "compressors.tasks")
MAX_LINES = 400
MAX_FUNCTION_LINES = 80


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names of what *tree* imports, with lines; a name imported from a package counts as both."""
    body = tree.body if top_only and isinstance(tree, ast.Module) else ast.walk(tree)
    for node in body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                path = ROOT.joinpath(*inner.split("."))
                is_module = path.with_suffix(".py").exists() or (path / "__init__.py").exists()
                yield (inner if is_module else str(node.module)), node.lineno


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    module = name_of(path)
    rule = max((key for key in MAY_IMPORT if within(module, key)), key=len)
    for imported, line in imports(parsed(path)):
        if imported.split(".")[0] not in PACKAGES:
            continue
        allowed = any(
            within(imported, p) if p not in {"harness"} or rule == "harness.commands" else imported == p
            for p in MAY_IMPORT[rule]
        )
        folder = next((p for p in PLUGINS if within(module, p)), None)
        if folder and within(imported, folder):
            rest = imported.removeprefix(folder).removeprefix(".")
            allowed = rest == "" or rest.startswith("_")
        assert allowed, f"{path}:{line}: {module} must not import {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_heavy_packages_are_imported_late(path: Path) -> None:
    module = name_of(path)
    if any(within(module, folder) for folder in MAY_BE_HEAVY) or module in torch_modules():
        return
    for imported, line in imports(parsed(path), top_only=True):
        assert imported.split(".")[0] not in HEAVY, f"{path}:{line}: import {imported} inside a function"


def torch_modules() -> set[str]:
    """Modules of compressors, but for compressors.build and what it imports at its top."""
    by_name = {name_of(path): path for path in MODULES}
    light, new = {"compressors"}, {"compressors.build"}
    while new:
        light |= new
        found = {name for module in new for name, _ in imports(parsed(by_name[module]), top_only=True)}
        new = {name for name in found if name in by_name and within(name, "compressors")} - light
    return {name for name in by_name if within(name, "compressors")} - light


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_is_a_sentence(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MAX_LINES, f"{path} is longer than {MAX_LINES} lines"
    tree = ast.parse(text)
    if text:
        assert ast.get_docstring(tree) or not path.is_relative_to(ROOT / "harness"), f"{path}: no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{path}:{node.lineno}: {node.name} has {length} lines"


def test_forbidden_file_names() -> None:
    names = {path.name for path in SOURCES}
    assert not names & {"utils.py", "helpers.py", "common.py", "base.py", "manager.py"}


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["list", "passes"],
        ["list", "passes", "--verbose"],
        ["bench", "--help"],
        ["report", "--help"],
    ],
)
def test_help_and_list_import_nothing_heavy(argv: list[str]) -> None:
    code = (
        "import sys\n"
        "from harness.cli import run\n"
        f"assert run({argv!r}) == 0\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("HEAVY []")
