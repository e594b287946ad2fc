"""Every view in a real browser: nothing is asked of anybody else, no script of a run runs."""

import shutil

import pytest

from tests.support.pages import HOSTILE, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


@pytest.fixture
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def workbench(served, tmp_path, browser, monkeypatch):
    """A page that has entered, over a sweep of six; what it asked for, and what went wrong."""
    monkeypatch.chdir(tmp_path)
    for i, (alpha, seed) in enumerate((a, s) for a in ("0", "1") for s in (1, 2, 3)):
        write_run(
            tmp_path / "runs" / "sweep" / str(i),
            seed,
            alpha,
            0.5 + 0.4 * float(alpha),
            text=HOSTILE,
        )
    place = served(tmp_path / "runs")
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(120_000)
    page.asked, page.wrong = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("dialog", lambda dialog: page.wrong.append(dialog.message))
    page.goto(f"http://127.0.0.1:{place.port}/#token=tok")
    page.wait_for_selector("nav")
    yield page
    assert not page.wrong
    assert all(url.startswith((f"http://127.0.0.1:{place.port}/", "data:")) for url in page.asked)
    assert not any("token=" in url.partition("#")[0] for url in page.asked)


def test_a_sweep_answers_in_three_clicks(workbench):
    page = workbench
    page.goto(page.url.split("#")[0] + "runs?group=directory")
    page.click("tr.group a:has-text('Did it help?')")
    page.wait_for_selector("text=Yes, it helped")
    assert page.locator("svg .dot").count() >= 8
    page.click("text=which rows?")
    page.wait_for_selector("table.matrix")
    assert page.locator("table[aria-label=rows] tbody tr").count() == 50
    page.click("table.matrix td a >> nth=1")
    page.wait_for_selector("table.matrix a[aria-current]")
    page.click("input.flag >> nth=0")
    page.wait_for_selector("text=1 flagged")


def test_every_view_fits_a_wide_and_a_narrow_window(workbench):
    page, base = workbench, workbench.url.split("#")[0]
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 800})
        for view in (
            "runs",
            "run",
            "helped",
            "rows",
            "curves",
            "configs",
            "rewards",
            "data",
            "try",
            "guide",
        ):
            page.goto(f"{base}{view}?run=sweep/0&run=sweep/3")
            assert page.title() != "taken" and page.locator("h1").count()
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (view, width)


def test_keys_and_buttons(workbench):
    page, base = workbench, workbench.url.split("#")[0]
    page.goto(base + "runs")
    page.keyboard.press("/")
    page.keyboard.type("mode.alpha>0 headline>0.5")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=3 runs fit")
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    page.click("button.csv >> nth=0")
    assert page.evaluate("window.copied").startswith("run,task,model")
    page.goto(base + "run?run=sweep/0")
    page.hover(".chart svg >> nth=0")
    assert "training" in page.locator(".tip >> nth=0").inner_text()
