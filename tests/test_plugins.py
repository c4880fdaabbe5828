"""Every plugin file keeps its folder's contract, so a new one is tested by being there."""

from __future__ import annotations

import ast

import pytest

from harness.core import plugins
from harness.core.errors import MissingPackage, UsageError

CONTRACTS = {
    "compressors.passes": {"Options", "apply"},
    "compressors.formats": {"export", "outputs", "signature"},
    "compressors.tasks": {"model", "example_inputs"},
    "harness.transports": {"Options", "connect"},
    "harness.reports": {"SUFFIX", "render"},
    "harness.commands": {"command"},
}
ALL = [(package, name) for package in CONTRACTS for name in plugins.names(package)]


def defined(package: str, name: str) -> set[str]:
    path = plugins.ROOT.joinpath(*package.split("."), f"{name}.py")
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found


@pytest.mark.parametrize(("package", "name"), ALL)
def test_plugin_defines_what_its_folder_asks_for(package: str, name: str) -> None:
    assert CONTRACTS[package] <= defined(package, name)
    summary = plugins.summary(package, name)
    assert 10 <= len(summary) <= 110, "the help is the first line of the docstring"


def test_every_kind_has_plugins() -> None:
    for package in CONTRACTS:
        assert plugins.names(package), package


def test_unknown_name_says_the_likely_one() -> None:
    with pytest.raises(UsageError, match=r"no pass 'quantize'.*Did you mean 'quantise'\?"):
        plugins.load("compressors.passes", "quantize")


def test_missing_package_names_the_install_command() -> None:
    error = plugins.missing_package("executorch", needed_by="compressors.formats.executorch")
    assert isinstance(error, MissingPackage)
    assert "-m pip install 'edgebench[executorch]'" in str(error)


@pytest.mark.parametrize("name", plugins.names("compressors.passes"))
def test_options_of_a_pass_may_be_read_again_with_all_their_defaults(name: str) -> None:
    """A recipe is stored with every default written out, and checked again before it is built."""
    options = plugins.load("compressors.passes", name).Options
    given = {key: ["x"] for key, field in options.model_fields.items() if field.is_required()}
    once = options.model_validate(given)
    assert options.model_validate(once.model_dump(mode="json", by_alias=True)) == once
