"""The HTML report in a real browser: it renders, asks nobody, says what the records say, and runs nothing."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import metrics, ranking
from harness.core.types import Run
from harness.reports import _wording, html
from tests import records

#: selenium's types lack half of what its Chromium driver can do.
WebDriver = Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (apt install chromium-driver)"
)
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
#: Cell -> column -> its data attributes and its text as a person sees it.
TABLE = """
    const read = (td) => [td.dataset.metric, {...td.dataset, text: td.innerText}];
    const line = (tr) => [tr.dataset.cell, Object.fromEntries([...tr.cells].map(read))];
    return Object.fromEntries([...document.querySelectorAll(".cells tbody tr")].map(line));
"""
HOSTILE = """<script>alert(1)</script></script><img src=x onerror="alert(2)">'"`{{7*7}}&amp; 😀"""

#: Markup that Plotly itself understands in its texts.
MARKUP = "<b>x</b><a href='https://x.invalid'>y</a>"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    browser.set_window_size(1280, 900)
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def run() -> Run:
    """24 cells at two thread counts: one has failed, one was never reached."""
    return records.partial_run()


@pytest.fixture(scope="module")
def report(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(html.render(run), encoding="utf-8")
    return path


@pytest.fixture
def page(driver: WebDriver, report: Path) -> WebDriver:
    """The report, opened; tests that only look share one opening of it."""
    if driver.current_url != report.as_uri():
        show(driver, report)
    return driver


@pytest.fixture
def own_page(driver: WebDriver, report: Path) -> Iterator[WebDriver]:
    """The report, opened anew for a test that clicks or types."""
    show(driver, report)
    yield driver
    driver.get("about:blank")


def show(driver: WebDriver, path: Path) -> None:
    """Open *path*, wait until its script is through; older log entries are forgotten."""
    for kind in ("browser", "performance"):
        driver.get_log(kind)
    driver.get(path.as_uri())
    until(driver, "return document.documentElement.dataset.ready === 'true'")


def until(driver: WebDriver, script: str) -> Any:
    """The value of *script* as soon as it is true."""
    deadline = time.monotonic() + 30
    while not (value := driver.execute_script(script)):
        assert time.monotonic() < deadline, f"never true: {script}"
        time.sleep(0.02)
    return value


def find(where: WebDriver, selector: str) -> list[Any]:
    found: list[Any] = where.find_elements("css selector", selector)
    return found


def data(driver: WebDriver, kind: str, then: str) -> Any:
    """What the plot of this kind draws."""
    return driver.execute_script(f"return document.querySelector('[data-plot={kind}]').data.{then}")


def lines(driver: WebDriver) -> list[str]:
    """The ids of the table's rows that are shown, from top to bottom."""
    return [r.get_attribute("data-cell") for r in find(driver, ".cells tbody tr") if r.is_displayed()]


def complaints(driver: WebDriver) -> list[str]:
    """Everything on the console and every request that left the file."""
    told = [entry["message"] for entry in driver.get_log("browser")]
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            url = message["params"]["request"]["url"]
            told += [] if url.startswith(("file:", "data:", "blob:")) else [url]
    return told


@needs_browser
def test_the_page_renders_without_a_complaint_and_without_a_request(own_page: WebDriver) -> None:
    kinds = [node.get_attribute("data-plot") for node in find(own_page, "[data-plot].js-plotly-plot")]
    assert kinds == ["latency", "pareto", "size", "memory", "drift"]
    assert all(find(node, "svg .trace, svg .point, svg path") for node in find(own_page, "[data-plot]"))
    assert complaints(own_page) == []


@needs_browser
def test_using_every_control_makes_no_complaint(own_page: WebDriver) -> None:
    for button in find(own_page, ".views button, .cells thead button"):
        button.click()
    for scheme in ("dark", "light"):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        own_page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    own_page.set_window_size(500, 900)
    own_page.set_window_size(1280, 900)
    own_page.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert {plot.size["width"] for plot in find(own_page, ".main-svg")} == {680}
    assert not find(own_page, "details:not([open])")
    own_page.execute_script("dispatchEvent(new Event('afterprint'))")
    assert max(plot.size["width"] for plot in find(own_page, ".main-svg")) > 1000
    assert complaints(own_page) == []


@needs_browser
def test_no_plot_offers_to_send_its_data_away(page: WebDriver) -> None:
    """Plotly's own tool bar has such a button unless it is told not to."""
    titles = {b.get_attribute("data-title") for b in find(page, ".modebar-btn")}
    assert titles == {"Zoom", "Pan", "Reset axes", "Download plot"}
    assert not find(page, ".plotly-cloud-dialog-box")


@needs_browser
def test_every_number_of_the_table_is_the_records(page: WebDriver, run: Run) -> None:
    """Both what a person reads and what a script reads, for every figure of every cell."""
    speed = {cell: c for group in ranking.rank(run) for cell, c in group.over_original.items()}
    shown: dict[str, dict[str, Any]] = page.execute_script(TABLE)
    rows = metrics.rows(run)
    assert set(shown) == {row.cell.id for row in rows}
    for row in (r for r in rows if r.status == "measured"):
        line = shown[row.cell.id]
        assert set(line) == {"recipe", "format", "threads", *(name for name, _, _ in html.COLUMNS)}
        ratio = speed[row.cell].ratio if row.cell in speed else 1.0
        assert ratio is not None
        assert float(line["speed_up"]["value"]) == 1 / ratio
        assert line["speed_up"]["text"].startswith(f"{1 / ratio:.2f} ×" if ratio != 1 else "1 ×")
        for name in (name for name, _, _ in html.COLUMNS if name != "speed_up"):
            figure, cell = row.metrics[name], line[name]
            assert float(cell["value"]) == figure.value
            assert cell["text"].splitlines()[0] == _wording.figure(row, name)
            assert int(cell["n"]) == figure.n
            if figure.low is not None:
                assert (float(cell["low"]), float(cell["high"])) == (figure.low, figure.high)
                text, spread = _wording.figure(row, name), _wording.spread(row, name)
                # A spread smaller than the digits that are shown is not written out.
                assert spread in cell["text"] or spread == f"{text}–{text}"


@needs_browser
def test_what_was_not_measured_is_visible_with_its_reason(page: WebDriver, run: Run) -> None:
    lost = [row for row in metrics.rows(run) if row.status != "measured"]
    assert [row.status for row in lost] == ["unsupported_op", "interrupted"]
    for row in lost:
        (line,) = find(page, f'tr[data-cell="{row.cell.id}"]')
        assert line.is_displayed()
        assert row.status.replace("_", " ") in line.text
        assert str(row.reason) in line.text
    (listed,) = find(page, ".lost")
    assert listed.text.count("\n") == 2
    assert records.NO_LOWERING in listed.text
    assert find(page, "footer")[0].text.splitlines()[-1] == "measured 22 of 24 cells"


@needs_browser
def test_headers_sort_by_value_both_ways_and_keep_the_unmeasured_last(own_page: WebDriver, run: Run) -> None:
    """By text, "1.08 ms" would come before "232 µs"."""
    from selenium.webdriver.common.keys import Keys

    rows = {row.cell.id: row for row in metrics.rows(run)}
    (button,) = find(own_page, "th[data-sort=first_inference_ns] button")
    for sign, name in ((1, "ascending"), (-1, "descending")):
        button.send_keys(Keys.ENTER)
        values = [rows[line].first_inference_ns.value for line in lines(own_page)]
        assert values[-2:] == [None, None]
        known = [sign * v for v in values if v is not None]
        assert known == sorted(known)
        assert len(known) == 22
        (header,) = find(own_page, "th[data-sort=first_inference_ns]")
        assert header.get_attribute("aria-sort") == name
    assert len(find(own_page, "th[data-sort][aria-sort=none]")) == len(find(own_page, "th[data-sort]")) - 1


@needs_browser
def test_a_filter_hides_lines_and_their_marks_in_the_plots(own_page: WebDriver) -> None:
    everything = lines(own_page)
    find(own_page, "input[type=search]")[0].send_keys("pruned_int8 ONNX")
    assert lines(own_page) == [line for line in everything if "pruned_int8--onnx" in line]
    assert find(own_page, ".controls output")[0].text == "2 of 24 cells"
    drawn = until(own_page, "return document.querySelector('[data-plot=size]').data[0].y")
    assert drawn == ["pruned_int8 .onnx"]
    find(own_page, "input[name=threads][value='2']")[0].click()
    assert len(lines(own_page)) == 1
    find(own_page, "input[name=format][value=onnx]")[0].click()
    assert lines(own_page) == []
    assert find(own_page, "[data-plot=latency]")[0].text == "Nothing to draw."
    for box in find(own_page, "input[name=threads], input[name=format]"):
        if not box.is_selected():
            box.click()
    search = find(own_page, "input[type=search]")[0]
    own_page.execute_script(
        "arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", search
    )
    assert lines(own_page) == everything
    assert find(own_page, "[data-plot=latency] svg")
    assert complaints(own_page) == []


@needs_browser
def test_the_plots_draw_the_records(page: WebDriver, run: Run) -> None:
    rows = {row.cell.id: row for row in metrics.rows(run)}
    front = [r for g in ranking.rank(run) for r in g.front]
    traces = page.execute_script(
        "return document.querySelector('[data-plot=pareto]').data.map(t => [t.mode, t.x, t.y])"
    )
    drawn = {(x, y) for mode, xs, ys in traces if "text" in mode for x, y in zip(xs, ys, strict=True)}
    assert len(drawn) == 22
    for row in rows.values():
        if row.p50_ns.value and row.score.value:
            near = [p for p in drawn if p == pytest.approx((row.p50_ns.value / 1e3, row.score.value * 100))]
            assert near, row.cell
    assert sum(len(xs) for mode, xs, _ in traces if mode == "lines") == len(front)
    blocks = data(page, "latency", "filter(t => t.mode === 'markers').flatMap(t => t.x)")
    medians = [m / 1e3 for r in run.records for m in metrics.block_medians(r).values()]
    assert sorted(blocks) == pytest.approx(sorted(medians))


@needs_browser
def test_a_file_with_wrong_outputs_is_in_no_plot(driver: WebDriver, tmp_path: Path) -> None:
    """Its size is known, and worth nothing."""
    wrong = records.medians(1000, 1100, 1050, of=records.cell("int8"))
    wrong = replace(wrong, status="wrong_output", reason="11 dB")
    path = tmp_path / "wrong.html"
    path.write_text(html.render(records.run([records.medians(2000, 2100, 2050), wrong])), encoding="utf-8")
    show(driver, path)
    for kind in ("latency", "pareto", "size", "drift"):
        drawn = json.dumps(data(driver, kind, "map(t => [t.x, t.y, t.text, t.hovertext, t.name])"))
        assert "fp32" in drawn
        assert "int8" not in drawn


@needs_browser
@pytest.mark.parametrize("width", [360, 820])
def test_the_page_never_scrolls_sideways(driver: WebDriver, report: Path, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    show(driver, report)
    try:
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_no_table_scrolls_sideways_on_a_screen_of_1280(driver: WebDriver, tmp_path: Path) -> None:
    """Two thread counts give the widest table, and a recipe may have a long name."""
    whole = records.partial_run()
    long = replace(whole.records[0].cell, recipe="pruned_by_half_then_int8_per_channel")
    kept = (replace(whole.records[0], cell=long), *whole.records[1:])
    path = tmp_path / "wide.html"
    path.write_text(html.render(records.run(kept)), encoding="utf-8")
    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    show(driver, path)
    try:
        driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        script = "return [...document.querySelectorAll('.scroll')].map(e => e.scrollWidth - e.clientWidth)"
        hidden = driver.execute_script(script)
        assert len(hidden) >= 4
        assert set(hidden) == {0}
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_browser
def test_hostile_names_are_shown_and_do_nothing(driver: WebDriver, tmp_path: Path) -> None:
    of = records.cell(MARKUP, model=HOSTILE, device=HOSTILE)
    facts = {**records.DEVICE_FACTS, "cpu_model": HOSTILE, HOSTILE: HOSTILE}
    good = records.medians(1000, 1100, 1050, of=of, device=facts, host={HOSTILE: HOSTILE})
    lost = records.failed(records.cell("int8", model=HOSTILE, device=HOSTILE), "timeout", HOSTILE)
    path = tmp_path / "hostile.html"
    hostile = records.run([good, lost], name=HOSTILE, request={HOSTILE: HOSTILE})
    path.write_text(html.render(hostile), encoding="utf-8")
    show(driver, path)
    assert driver.execute_script("return document.scripts.length") == 4
    assert not find(driver, "img, h1 *, h2 *, h3 *")
    assert [h.text for h in find(driver, "h1, h2, h3")][:3] == [HOSTILE] * 3
    assert HOSTILE in find(driver, "td.failed")[0].text
    assert driver.title == f"{HOSTILE} – edgebench"
    (tick,) = find(driver, "[data-plot=latency] .ytick text")
    assert tick.text.startswith(MARKUP[:40])
    assert not find(driver, "svg script, svg img, svg a[href]")
    assert complaints(driver) == []  # an alert would have failed every call above
