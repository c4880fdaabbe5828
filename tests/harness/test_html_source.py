"""The source of the HTML report and the data behind its plots, without a browser."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness import metrics, ranking
from harness.core.errors import MissingPackage
from harness.core.types import Run, Setting
from harness.reports import _wording, html
from harness.reports._page import facts, figures
from tests import records

STYLE = (Path(html.__file__).with_name("_page") / "page.css").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def run() -> Run:
    """24 cells at two thread counts: one has failed, one was never reached."""
    return records.partial_run()


class Outline(HTMLParser):
    """What the source itself refers to and how its tables and plots are labelled."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def outline(run: Run) -> list[tuple[str, dict[str, str | None]]]:
    parser = Outline()
    parser.feed(html.render(run))
    return parser.tags


def test_the_source_refers_to_nothing_outside_itself(run: Run) -> None:
    tags = outline(run)
    for tag, attributes in tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"@import|url\(", STYLE)
    (policy,) = [a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "form-action 'none'" in policy


def test_tables_and_plots_are_labelled_for_those_who_listen(run: Run) -> None:
    tags = outline(run)
    ids = {a["id"] for _, a in tags if a.get("id")}
    plots = [a for _, a in tags if "data-plot" in a]
    assert len(plots) == 5
    for attributes in plots:
        assert attributes["role"] == "img"
        assert {attributes["aria-labelledby"], attributes["aria-describedby"]} <= ids
    assert all(a.get("scope") in ("col", "row") for tag, a in tags if tag == "th")
    assert [a for tag, a in tags if tag == "html"] == [{"lang": "en"}]
    fastest = min((r for r in metrics.rows(run) if r.p50_ns.value), key=lambda r: r.p50_ns.value or 0)
    expected = f"{_wording.figure(fastest, 'p50_ns')} ({ranking.label(fastest.cell)})"
    assert f"Latency of 22 cells, medians from {expected}" in html.render(run)


def test_quick_looks_and_emulated_devices_are_said_at_the_top(run: Run) -> None:
    marked = replace(
        run,
        info=replace(run.info, plan=replace(run.info.plan, quick=True)),
        records=tuple(replace(r, device={**r.device, "emulated": True}) for r in run.records),
    )
    plain, loud = html.render(run), html.render(marked)
    for words in ("Quick look.", "Emulated device."):
        assert words not in plain
        assert words in loud
    assert "fastest</span>" not in loud


def test_a_run_with_nothing_measured_still_has_a_page() -> None:
    cells = [records.cell("fp32", f) for f in records.FORMATS]
    page = html.render(records.run([], cells=cells))
    assert page.count("the run stopped before this cell") >= 3
    assert "measured 0 of 3 cells" in page
    assert "data-plot=" not in page.split("<script>")[0]


def test_the_box_and_the_curve_come_from_every_value() -> None:
    record = records.record(
        [records.latency_block(range(1, 1002)), records.latency_block(range(1, 1002), index=1)]
    )
    run = records.run([record])
    (cell,) = figures.plots(ranking.rank(run), {record.cell: record})["cells"]
    assert cell["count"] == 2002
    assert cell["box"] == pytest.approx([51, 251, 501, 751, 951], abs=0.5)
    assert len(cell["curve"]) == figures.CURVE_POINTS == 199
    assert (cell["curve"][0], cell["curve"][-1]) == (pytest.approx(6, abs=0.6), pytest.approx(996, abs=0.6))


def test_a_drift_that_all_cells_share_is_the_rounds_shift() -> None:
    """Blocks at 1, 1 and 1.1 times the cell's own median, whatever the cell's speed."""
    several = [records.medians(m, m, round(m * 1.1), of=records.cell(f"r{m}")) for m in (10_000, 70_000)]
    lost = replace(records.medians(5, 5000, 9, of=records.cell("lost")), status="wrong_output", reason="x")
    found = figures.rounds([*several, lost])
    assert [(r["index"], r["cells"]) for r in found] == [(0, 2), (1, 2), (2, 2)]
    assert [r["shift_percent"] for r in found] == pytest.approx([0, 0, 10])


def test_a_setting_that_did_not_take_opens_the_evidence() -> None:
    good = records.medians(1000, 1100)
    refused = {"threads": Setting(requested=4, observed=1)}
    bad = replace(good, blocks=tuple(replace(b, settings=refused) for b in good.blocks))
    assert '<tr class="differs">' not in html.render(records.run([good]))
    assert re.search(
        r'<tr class="differs"><th scope="row">threads</th><td>4</td><td>1</td>',
        html.render(records.run([bad])),
    )


def test_conditions_are_a_range_or_a_reason(run: Run) -> None:
    """Of the builder: loads from 0.3 to 0.9, and others take 0.1 s of 2 cores in each second."""
    told = dict(facts.conditions(run.records))
    assert told == {
        "CPU time of other processes": "5.0 %",
        "load average 1min": "0.3–0.9",
        "swap": "0 B",
        "frequencies": "2100–2400 MHz",
        "temperatures": "not known: no /sys/class/thermal/thermal_zone*/temp",
    }
    page = html.render(run)
    assert all(value in page for value in told.values())


def test_the_devices_own_check_is_told_at_its_worst(run: Run) -> None:
    """The builder's blocks reach 141.2 dB and one less from block to block."""
    told = {proof["device"] for proof in facts.proofs([r for r in run.records if r.blocks])}
    assert told == {"136.2 dB"}


def test_without_plotly_the_error_is_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(MissingPackage, match=re.escape("pip install 'edgebench[report]'")):
        html.render(records.run([records.medians(1000)]))


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb`` (WCAG 2.2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def mixed(ink: str, paper: str, share: float) -> str:
    channels = zip(*(bytes.fromhex(colour[1:]) for colour in (ink, paper)), strict=True)
    return "#" + bytes(round(a * share + b * (1 - share)) for a, b in channels).hex()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("ink", ["ink", "soft", "executorch", "onnx", "tflite", "bad", "good"])
def test_every_ink_is_readable_on_every_paper(scheme: str, ink: str) -> None:
    """WCAG AA asks for a contrast of 4.5 to 1; a chip's paper has 12 % of its ink in it."""
    blocks = STYLE.split("@media")[:2]
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block)) for block in blocks)
    colours = light if scheme == "light" else dark
    for paper in ("page", "card", "wash"):
        for share in (0.0, 0.12 if ink in ("executorch", "onnx", "tflite") else 0.0):
            pair = sorted((luminance(colours[ink]), luminance(mixed(colours[ink], colours[paper], share))))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (ink, paper, share)
