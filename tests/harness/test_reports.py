"""Text renderings: every cell in each of them, the figures of the records, and nothing of a hostile name."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pandas as pd
import pytest

from harness import metrics
from harness.core import plugins, units
from harness.core.types import STATUSES, Incident, Run, Setting, Status
from harness.reports import _wording
from tests import records

NAMES = plugins.names("harness.reports")
TEXT = [name for name in NAMES if name != "html"]  # html has a test file and a browser of its own
REASON = "aten.erfinv has no lowering"
HOSTILE = "<script>alert(1)</script>|`x`\n# *h* [a](b) \x1b[31m😀"


def render(name: str, run: Run) -> str:
    text = plugins.load("harness.reports", name).render(run)
    assert isinstance(text, str)
    return text


@pytest.fixture(scope="module")
def run() -> Run:
    """Twelve cells, of which one failed and one was never reached."""
    whole = records.demo_run(samples=120)
    kept = list(whole.records)
    kept[4] = records.failed(kept[4].cell, "unsupported_op", REASON)
    return records.run(kept[:-1], cells=[r.cell for r in whole.records])


def test_the_renderings_are_the_five_that_are_promised() -> None:
    assert NAMES == ["csv", "html", "json", "markdown", "table"]
    suffixes = {name: plugins.load("harness.reports", name).SUFFIX for name in NAMES}
    assert suffixes == {
        "csv": ".csv",
        "html": ".html",
        "json": ".json",
        "markdown": ".md",
        "table": ".txt",
    }


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("status", [s for s in STATUSES if s != "measured"])
def test_a_failed_cell_of_any_kind_is_there_with_its_reason(name: str, status: Status) -> None:
    lost = replace(records.failed(records.cell("int8"), "timeout", REASON), status=status)
    text = render(name, records.run([records.medians(1000, 1100), lost])).replace("\\", "")
    assert status in text
    assert REASON in text


@pytest.mark.parametrize("name", TEXT)
def test_every_planned_cell_is_in_every_rendering(name: str, run: Run) -> None:
    text = render(name, run).replace("\\", "")
    for cell in run.info.cells:
        suffix = {"executorch": ".pte", "onnx": ".onnx", "tflite": ".tflite"}[cell.format]
        lines = [line for line in text.splitlines() if cell.recipe in line]
        assert any(suffix in line or cell.format in line for line in lines), cell
    assert "--resume demo" in text


@pytest.mark.parametrize("name", ["table", "markdown"])
def test_the_last_line_says_how_much_was_measured(name: str, run: Run) -> None:
    assert render(name, run).rstrip().splitlines()[-1].strip("*") == "measured 10 of 12 cells"


@pytest.mark.parametrize("name", ["table", "markdown"])
def test_a_quick_look_is_marked(name: str, run: Run) -> None:
    quick = replace(run, info=replace(run.info, plan=replace(run.info.plan, quick=True)))
    assert "quick look" not in render(name, run).lower()
    assert "quick look" in render(name, quick).lower()


@pytest.mark.parametrize("name", ["table", "markdown"])
def test_people_see_the_p50_its_interval_and_the_counts(name: str, run: Run) -> None:
    text = render(name, run)
    for row in metrics.rows(run):
        if row.status == "measured":
            assert _wording.figure(row, "p50_ns") in text
            assert _wording.spread(row, "p50_ns") in text
    assert "median over 6 blocks" in text
    assert "720 timed inferences per cell" in text
    assert "3 seeds, 450 test samples" in text


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_the_table_fits_its_width_and_says_what_it_left_out(run: Run, width: int) -> None:
    text = plugins.load("harness.reports", "table").render(run, width=width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    assert ("Left out for want of width" in text) == (width < 200)
    assert "pruned_int8" in text
    for row in metrics.rows(run):
        assert row.status != "measured" or _wording.figure(row, "p50_ns") in text


def test_the_table_is_plain_unless_colour_is_asked_for(run: Run) -> None:
    table = plugins.load("harness.reports", "table")
    assert "\x1b" not in table.render(run)
    assert "\x1b[" in table.render(run, color=True)


def test_csv_reads_back_with_the_numbers_of_the_rows(run: Run) -> None:
    frame = pd.read_csv(io.StringIO(render("csv", run)))
    rows = metrics.rows(run)
    assert list(frame["status"]) == [r.status for r in rows]
    for name in metrics.METRICS:
        for read, row in zip(frame[name], rows, strict=True):
            value = row.metrics[name].value
            assert pd.isna(read) if value is None else read == pytest.approx(value, rel=1e-12)
    assert frame.loc[4, "p50_ns_reason"] == REASON
    assert list(frame["p50_ns_n"]) == [6, 6, 6, 6, 0, 6, 6, 6, 6, 6, 6, 0]


def test_json_has_the_run_the_rows_and_the_rankings(run: Run) -> None:
    data = json.loads(render("json", run))
    assert (data["schema"], data["measured"], data["cells"]) == (1, 10, 12)
    assert data["summary"] == "measured 10 of 12 cells"
    assert data["run"]["name"] == "demo"
    assert [r["cell_id"] for r in data["rows"]] == [c.id for c in run.info.cells]
    for read, row in zip(data["rows"], metrics.rows(run), strict=True):
        assert read["metrics"]["p50_ns"]["value"] == row.p50_ns.value
        assert read["reason"] == row.reason
    (group,) = data["rankings"]
    assert group["fastest_first"][0] == "local--digits_cnn--pruned_int8--executorch--t1--xnnpack"
    against = group["fastest_over_others"][0]
    assert (against["candidate"], against["verdict"], against["pairs"]) == (
        group["fastest_first"][0],
        "better",
        6,
    )


@pytest.mark.parametrize("name", [n for n in NAMES if n != "csv"])
def test_a_busy_device_and_a_refused_setting_are_said_with_the_results(name: str) -> None:
    """In the builder's blocks others take 5 % of two cores, and its settings are taken."""
    calm = records.medians(1000, 1100)
    state = {
        "state_before": records.state(0.1),
        "state_after": records.state(5.0, clock_s=1.0, others_s=0.84),
    }
    refused = {"threads": Setting(requested=4, observed=1)}
    blocks = [replace(b, facts=state, settings=refused) for b in calm.blocks]
    busy = replace(calm, blocks=tuple(blocks))
    assert "busy" not in render(name, records.run([calm]))
    text = " ".join(render(name, records.run([busy])).replace("\\", "").split())
    assert "local was busy: other processes took up to 42 % of its 2 cores during a block" in text
    assert "threads was asked as 4 and read back as 1 in 2 blocks" in text


def unfinished(run: Run) -> Run:
    """The last cell of *run* stopped after three of its latency blocks and one memory block."""
    cut = run.records[-1]
    blocks = (*cut.blocks[:3], cut.blocks[-1])
    lost = replace(cut, status="interrupted", reason="stopped after 4 of 9 blocks", blocks=blocks)
    return records.run([*run.records[:-1], lost])


def test_a_cell_cut_short_shows_its_file_and_no_times() -> None:
    whole = records.demo_run(samples=120)
    cut = unfinished(whole)
    row = metrics.row(cut.records[-1])
    assert row.p99_ns.value is not None  # it is in the record, and no evidence yet
    for name in metrics.METRICS:
        shown = _wording.figure(row, name) != _wording.ABSENT
        assert shown == (name in metrics.OF_THE_FILE - {"container_bytes"}), name  # none is packed here
        assert shown or _wording.spread(row, name) == ""
    line = next(x for x in render("markdown", cut).splitlines() if "interrupted" in x).replace("\\", "")
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:13] == ["**interrupted**", *[_wording.ABSENT] * 9]
    assert _wording.ABSENT not in cells[13:]
    (told,) = (x for x in render("table", cut).splitlines() if "interrupted" in x and "stopped" not in x)
    assert "µs" not in told
    assert "ms" not in told


def test_the_notes_count_no_cell_that_was_cut_short() -> None:
    notes = _wording.notes(metrics.rows(unfinished(records.demo_run(samples=120))))
    assert "median over 6 blocks" in notes[0]
    assert "highest of 3 memory blocks" in notes[1]


@pytest.mark.parametrize("name", [n for n in NAMES if n != "csv"])
def test_more_threads_than_cores_are_said_once(name: str) -> None:
    """The device of these records has two cores."""
    told = "local has 2 cores for the agent: with 3 and 8 threads, some wait while others run"
    assert told in render(name, records.demo_run(threads=(1, 2, 3, 8), samples=120))
    assert "for the agent" not in render(name, records.demo_run(threads=(1, 2), samples=120))
    unknown = records.demo_run(threads=(8,), samples=120, facts={})
    assert "for the agent" not in render(name, unknown)


@pytest.mark.parametrize("name", TEXT)
def test_hostile_names_and_reasons_stay_text(name: str) -> None:
    of = records.cell(HOSTILE, model=HOSTILE)
    good, lost = records.medians(1000, 1100, of=of), records.failed(records.cell("int8"), "timeout", HOSTILE)
    text = render(name, records.run([good, lost]))
    if name == "json":
        assert json.loads(text)["rows"][0]["cell"]["model"] == HOSTILE
    if name == "csv":
        frame = pd.read_csv(io.StringIO(text))
        assert list(frame["model"]) == [HOSTILE, "digits_cnn"]
        assert list(frame["reason"].dropna()) == [HOSTILE]
    if name == "markdown":
        assert "<script>" not in text.replace("\\<", "")
        assert not [line for line in text.splitlines() if line.startswith(("# ", "*h*"))]
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.replace("\\|", "").count("|") for line in tables} == {18}
    if name == "table":
        assert "\x1b" not in text
        assert not [line for line in text.splitlines() if line.startswith("# ")]


def test_a_run_without_any_record_still_renders() -> None:
    empty = records.run([], cells=[records.cell("int8", f) for f in records.FORMATS])
    for name in TEXT:
        assert "onnx" in render(name, empty)


def test_what_a_figure_means_is_written_out() -> None:
    row = metrics.row(records.medians(100_000, 103_000, 98_000))
    assert _wording.about(row.p50_ns) == "95 % interval; n = 3"
    assert _wording.about(row.file_bytes) == "exact; n = 1"
    assert "one block" in _wording.about(metrics.row(records.medians(5)).p50_ns)
    assert _wording.about(row.peak_bytes) == "no memory block was run"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        ("12.1 µs", "12.5 µs", "12.1–12.5 µs"),
        ("998 µs", "1.02 ms", "998 µs–1.02 ms"),
        ("0.97", "0.99", "0.97–0.99"),
        ("97.4 %", "99.5 %", "97.4–99.5 %"),
    ],
)
def test_bounds_share_their_unit_only_if_they_have_the_same(low: str, high: str, text: str) -> None:
    assert units.joined(low, high) == text


TROUBLED = replace(
    records.medians(1000, 1100),
    incidents=(
        Incident(kind="retried", utc="2026-01-02T03:04:05Z", block="latency 3", text="SIGKILL (9) ended it."),
        Incident(kind="rebooted", utc="2026-01-02T03:05:05Z", block="memory 1", text="It restarted."),
    ),
)


@pytest.mark.parametrize("name", ["table", "markdown", "html", "json"])
def test_what_was_mended_is_told(name: str) -> None:
    text = render(name, records.run([TROUBLED])).replace("\\", "")
    text = " ".join(text.split())
    assert "latency block 3 was run again: SIGKILL (9) ended it." in text
    assert "memory block 1 was run again after the device restarted: It restarted." in text


def test_a_device_that_did_not_come_back_is_not_called_mended() -> None:
    lost = replace(TROUBLED.incidents[0], kind="lost", text="It did not come back within 120 s.")
    (line,) = _wording.incidents([replace(TROUBLED, incidents=(lost,))])
    assert "latency block 3 lost its device, which did not come back then: It did not" in line


def test_many_troubles_are_counted_and_not_all_named() -> None:
    many = [replace(TROUBLED.incidents[0], block=f"latency {n}") for n in range(40)]
    lines = _wording.incidents([replace(TROUBLED, incidents=tuple(many))])
    assert len(lines) == _wording.MOST_INCIDENTS + 1
    assert lines[-1] == "28 more such incidents are in the records."


@pytest.mark.parametrize("name", ["table", "markdown", "json"])
def test_a_setting_that_was_not_taken_says_why(name: str) -> None:
    block = TROUBLED.blocks[0]
    settings = {"governor": Setting(requested="performance", observed=None)}
    refused = replace(block, settings=settings, facts={"settings_not_taken": {"governor": "no cpufreq"}})
    text = render(name, records.run([replace(TROUBLED, blocks=(refused,))])).replace("\\", "")
    said = "governor was asked as performance and read back as nothing in 1 block (no cpufreq)."
    assert said in " ".join(text.split())


def test_an_emulated_device_is_ranked_in_no_report() -> None:
    """It is the fastest by far, and stands beside a real one: nobody calls it that."""
    real = records.demo_run(samples=40, blocks=3, device="pi5")
    fake = records.demo_run(
        samples=40, blocks=3, device="qemu", speed=50, facts={**records.DEVICE_FACTS, "emulated": True}
    )
    both = records.run([*real.records, *fake.records])
    derived = json.loads(render("json", both))
    by_device = {group["device"]: group for group in derived["rankings"]}
    assert len(by_device["pi5"]["fastest_first"]) == 12
    assert by_device["qemu"]["fastest_first"] == by_device["qemu"]["pareto_front"] == []
    assert by_device["qemu"]["speed_over_uncompressed"] == by_device["qemu"]["fastest_over_others"] == []
    assert by_device["qemu"]["fastest_within_score_loss"] is None
    table = pd.read_csv(io.StringIO(render("csv", both)))
    assert dict(table.groupby("device")["emulated"].all()) == {"pi5": False, "qemu": True}
    for name in ("table", "markdown", "html"):
        text = " ".join(render(name, both).replace("\\", "").replace("&#39;", "'").split())
        assert "qemu is emulated: its times are the emulator's" in text, name
        assert "The fastest form of digits_cnn on pi5" in text, name
        assert "The fastest form of digits_cnn on qemu" not in text, name
        assert "fastest of each format per device" in text, name
        assert "not ranked: emulated" in text, name
