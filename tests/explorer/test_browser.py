"""The explorer in a real browser: browse, filter, label by keyboard, reload, heat map, compare; no request leaves this machine, no policy is broken."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import uvicorn
from tests.explorer.sites import pairs_of, site_of

from palate.cli.ui import listen
from palate.explorer.app import create_app
from palate.explorer.rewards import Model
from palate.explorer.site import Site
from palate.scoring.sources import Opened

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"no browser at {CHROMIUM}")]


HOSTILE = "<img src=x onerror=document.title='broken'>"
"""Runs a script where it becomes markup."""


class Vowels:
    """The reward is the number of vowels."""

    def score(self, conversations: Any, **_: Any) -> np.ndarray:
        return np.array([sum(str(one.response).count(vowel) for vowel in "aeiou") for one in conversations], dtype=float)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Sixty pairs, the model against three of them with confidence; a prompt that would run a script if it could."""
    rows = [{"prompt": f"Question {i}? {HOSTILE}", "chosen": f"A good answer {i}.", "rejected": f"A bad one {i}.", "domain": f"d{i % 2}"} for i in range(60)]
    margins = [3.0 + i / 100 for i in range(57)] + [-4.0, -5.0, -6.0]
    pairs = pairs_of(rows, margins, other=[1.0] * 50 + [-1.0] * 10)
    return site_of(tmp_path, pairs, model=Model(Opened(Vowels(), {"name": "vowels"}, None)))


@pytest.fixture
def address(site: Site) -> Iterator[str]:
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(site), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    listening.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page that notes every request and complaint; strangers and complaints fail the test."""
    asked: list[str] = []
    complaints: list[str] = []
    context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert asked and not [url for url in asked if urlsplit(url).hostname != "127.0.0.1" and not url.startswith("data:")]
    assert not [text for text in complaints if "status of 400" not in text and "Error Code 400" not in text], "but for what a test asks for on purpose"


def test_a_visit(page: Any, site: Site) -> None:
    page.goto("/pairs")
    assert page.locator(".pair-card").count() == 20 and page.title() == "Pairs · palate", "a prompt's onerror never ran"
    page.keyboard.press("j")
    page.wait_for_url("**/pairs?after=19")
    assert "21–40 of 60" in page.locator(".pager").inner_text()

    # filters change the list in place, and the address with it
    page.locator("select[name=outcome]").select_option("wrong")
    expect(page.locator(".pair-card")).to_have_count(3)
    assert "outcome=wrong" in page.url
    page.keyboard.press("/")
    page.keyboard.type("answer 58")
    expect(page.locator(".pair-card")).to_have_count(1)
    page.go_back()
    expect(page.locator(".pair-card")).to_have_count(3)

    # one pair, with its heat map
    page.locator(".pair-card .over").first.click()
    page.wait_for_url("**/pairs/57?*")
    page.keyboard.press("h")
    page.wait_for_selector(".heat .last")
    shades = page.locator(".heat .side").first.locator(".text span")
    assert shades.count() == 4 and shades.last.get_attribute("title") == "4.000", "vowels of `A good answer 57.`"
    assert page.evaluate("getComputedStyle(document.querySelector('.heat .h5, .heat .h4')).backgroundColor") != "rgba(0, 0, 0, 0)"


def test_labelling_by_keyboard(page: Any, site: Site) -> None:
    page.goto("/label")
    assert "0 of 3 by ada" in page.locator(".crumbs").inner_text() and "Question 59?" in page.locator(".prompt-box").inner_text()
    assert "reward" not in page.locator(".sides").inner_text()
    left = page.locator(".side").first.inner_text()
    page.keyboard.press("?")
    page.keyboard.press("a")
    page.keyboard.press("Escape")
    assert not site.labels.path.exists(), "behind the open list of keys no key decides"
    page.keyboard.press("a")
    expect(page.locator(".crumbs")).to_contain_text("1 of 3")
    page.keyboard.press("t")
    expect(page.locator(".crumbs")).to_contain_text("2 of 3")
    page.keyboard.press("u")
    page.wait_for_selector(".said")
    assert "Question 58?" in page.locator(".prompt-box").inner_text() and "1 of 3" in page.locator(".crumbs").inner_text()
    page.keyboard.press("x")
    expect(page.locator(".crumbs")).to_contain_text("2 of 3")
    page.keyboard.press("s")
    page.wait_for_selector(".empty")
    lines = [json.loads(line) for line in site.labels.path.read_text().splitlines()]
    assert [line.get("verdict") for line in lines][1:] == ["tie", None, "both_bad", "skip"]
    assert lines[0]["verdict"] == ("chosen" if "good" in left else "rejected") and lines[0]["blind"] is True

    # a reload finds them; another annotator starts anew
    page.reload()
    assert page.locator(".empty").count() == 1
    page.goto("/labels")
    assert "3 decisions" in page.locator(".head").inner_text()
    page.locator("[data-opens='dialog.annotator']").click()
    page.locator("dialog.annotator input").fill("bob")
    page.locator("dialog.annotator button.main").click()
    expect(page.locator(".who")).to_contain_text("bob")
    page.goto("/label")
    assert "0 of 3 by bob" in page.locator(".crumbs").inner_text()
    page.keyboard.press("b")
    expect(page.locator(".crumbs")).to_contain_text("1 of 3")
    page.goto("/labels")
    assert "ada" in page.locator("table").nth(1).inner_text() and "bob" in page.locator("table").nth(1).inner_text()


def test_figures_comparison_and_scoring(page: Any) -> None:
    page.goto("/measures")
    page.wait_for_selector("#rewards svg")
    fill = page.evaluate("getComputedStyle(document.querySelector('#margins-picture, #rewards svg [fill=\"var(--blue)\"]')).fill")
    assert fill == "rgb(0, 114, 178)", "pictures take the page's own colours under the content policy"
    page.goto("/compare")
    page.wait_for_selector("#models svg")
    page.locator(".head a").click()
    page.wait_for_url("**/pairs?flip=either*")
    assert page.locator(".pair-card").count() == 7
    page.goto("/score")
    page.locator("[name=a]").fill("aaaa")
    page.locator("[name=b]").fill("a")
    page.locator("form.score button").click()
    page.wait_for_selector("#answer .card")
    assert "4.000" in page.locator("#answer").inner_text() and "95.3 %" in page.locator("#answer").inner_text()


def test_a_narrow_window_shows_which_page_is_open(page: Any) -> None:
    page.set_viewport_size({"width": 400, "height": 900})
    for address in ("/pairs", "/training"):
        page.goto(address)
        box = page.locator(".top nav [aria-current]").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 400, address


@pytest.mark.parametrize("width", [400, 900, 1600])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for address in ("/pairs", "/pairs/3", "/label", "/labels", "/prompts", "/prompts/3", "/score", "/training"):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        assert page.title().endswith("palate"), "nothing in the data ran"


def test_what_goes_wrong_is_said_on_the_page(page: Any, site: Site, address: str) -> None:
    page.goto("/label")
    site.labels.path.write_text("no label\n")
    page.keyboard.press("a")
    page.wait_for_selector("#notice:not([hidden])")
    assert "no label" in page.locator("#notice").inner_text()
    site.labels.path.unlink()
