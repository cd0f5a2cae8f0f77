"""The page in a real browser: nothing is loaded, nothing fails, all charts are drawn, and it fits a phone."""

import shutil

import pytest
from made_up_rows import made_up_sides, made_up_sweep, rows_of, write_profile
from test_report import ENGINE
from tiny_bundles import write_bundle

from shallowvit_bench.bundles import read_bundle
from shallowvit_bench.report import html_from_results
from shallowvit_bench.report.profiles import read_profile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LONG = "a-model-with-a-very-long-name-" * 6 + "<script>console.error('ran')</script>"
LOOK = """() => ({
    overflow: document.documentElement.scrollWidth - innerWidth,
    charts: [...document.querySelectorAll('figure svg[role=img]')].filter(e => e.checkVisibility()).map(chart => ({
        label: chart.getAttribute('aria-label'),
        marks: [...chart.querySelectorAll('rect, circle, polygon, polyline')].filter(
            mark => { const box = mark.getBBox(); return box.width + box.height > 0; }).length,
        texts: [...chart.querySelectorAll('text')].map(text => {
            const box = text.getBBox(), view = chart.viewBox.baseVal;
            return [text.textContent, Math.max(-box.x, box.x + box.width - view.width)]; }),
        size: parseFloat(getComputedStyle(chart.querySelector('text')).fontSize)
            * chart.getBoundingClientRect().width / chart.viewBox.baseVal.width,
    })),
    figures: document.querySelectorAll('figure').length,
    tables: document.querySelectorAll('figure + details table').length,
    page: getComputedStyle(document.body).backgroundColor,
    ink: getComputedStyle(document.body).color,
})"""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium here; install it with: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="no playwright here; install the extra dev")
    with api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page with everything on it, one with twelve sides, and one with nothing but a bundle."""
    folder = tmp_path_factory.mktemp("pages")
    info = read_bundle(write_bundle(folder / "tiny", name=LONG, engines=[ENGINE]))
    profile = read_profile(write_profile(folder / "p.json"), [info])
    whole = html_from_results([info], rows_of(made_up_sweep(), folder / "sweep.jsonl"), [profile])
    many = html_from_results([], rows_of(made_up_sides(12), folder / "many.jsonl"))
    for name, text in {"whole": whole, "many": many, "bare": html_from_results([info], [])}.items():
        (folder / f"{name}.html").write_text(text)
    return folder


def look(browser, path, *, width=1200, scheme="light"):
    """Load a page; return what is to be seen, what the console said, and what was asked of the network."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    try:
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        return page.evaluate(LOOK), said, asked
    finally:
        context.close()


@pytest.mark.parametrize("name", ["whole", "many", "bare"])
@pytest.mark.parametrize("width", [1200, 360])
def test_page_fits_and_all_its_charts_are_drawn(browser, pages, name, width):
    seen, said, asked = look(browser, pages / f"{name}.html", width=width)
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [(pages / f"{name}.html").as_uri()]
    assert seen["overflow"] <= 0
    assert len(seen["charts"]) == seen["figures"] == seen["tables"] > 0
    for chart in seen["charts"]:
        assert chart["label"]
        assert chart["marks"] > 0, chart["label"]
        assert [text for text in chart["texts"] if text[1] > 4] == [], chart["label"]
        assert 9 <= chart["size"] <= 18, chart["label"]


def test_page_is_dark_where_the_reader_wants_it(browser, pages):
    light, *_ = look(browser, pages / "bare.html")
    dark, *_ = look(browser, pages / "bare.html", scheme="dark")
    assert sum(map(int, light["page"][4:-1].split(", "))) > 700
    assert sum(map(int, dark["page"][4:-1].split(", "))) < 120
    assert sum(map(int, dark["ink"][4:-1].split(", "))) > 600


def test_page_is_reached_by_keyboard(browser, pages):
    page = browser.new_page()
    try:
        page.goto((pages / "whole.html").as_uri())
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "A"
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#what-was-removed-and-why"
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        assert page.evaluate("document.querySelector('details').open")
    finally:
        page.close()


def test_page_prints_the_folded_tables(browser, pages):
    page = browser.new_page()
    try:
        page.goto((pages / "bare.html").as_uri())
        seen = "document.querySelector('figure + details table').checkVisibility()"
        assert not page.evaluate(seen)
        page.emulate_media(media="print")
        assert page.evaluate(seen)
    finally:
        page.close()
