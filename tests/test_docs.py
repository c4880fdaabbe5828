"""The documents name everything that the program has, and what they show works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness import config
from harness.core import plugins

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
KINDS = {
    "verb": "harness.commands",
    "pass": "compressors.passes",
    "format": "compressors.formats",
    "model": "compressors.tasks",
    "transport": "harness.transports",
    "meter": "harness.meters",
    "report": "harness.reports",
}
NAMES = [(kind, name) for kind, package in KINDS.items() for name in plugins.names(package)]
NAMES += [("recipe", name) for name in config.recipe_names()]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_readme_names_every_plugin(kind: str, name: str) -> None:
    shown = f"edgebench {name}" if kind == "verb" else f"`{name}`"
    assert shown in README, f"the README does not name the {kind} {name}"


def test_readme_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), f"README links to {target}, which is not there"


def test_readme_options_exist() -> None:
    sources = "".join(p.read_text() for p in (ROOT / "harness" / "commands").glob("*.py"))
    shown = set(re.findall(r"(?<=[\s`])--[a-z][a-z-]+", README)) - {"--strict"}  # of mypy
    for option in shown:
        assert f'"{option}"' in sources, f"the README shows {option}, which no verb takes"
