"""The explorer in a real browser: browse, filter, label by keyboard, reload, heat map, compare; no request leaves this machine, no policy is broken."""

from __future__ import annotations

import json
import threading
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

PATIENCE = 120_000  # milliseconds until a test gives up; only a very busy machine comes near it
expect.set_options(timeout=PATIENCE)

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM.is_file(), reason=f"no browser at {CHROMIUM}")]


HOSTILE = "<img src=x onerror=document.title='broken'>"
"""Runs a script where it becomes markup."""


POOR_CONTRAST = """() => {
  const dot = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const colour = (text) => { dot.clearRect(0, 0, 1, 1); dot.fillStyle = text; dot.fillRect(0, 0, 1, 1); return [...dot.getImageData(0, 0, 1, 1).data]; };
  const over = ([r, g, b, a], under) => [r, g, b].map((part, i) => (part * a + under[i] * (255 - a)) / 255);
  const linear = (part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05;
  const poor = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), parent = texts.currentNode.parentElement;
    if (!text || !parent.getClientRects().length || parent.closest(".off, noscript, option, svg")) continue;
    let behind = [255, 255, 255];
    const chain = [];
    for (let one = parent; one; one = one.parentElement) chain.unshift(one);
    for (const one of chain) behind = over(colour(getComputedStyle(one).backgroundColor), behind);
    const style = getComputedStyle(parent), pair = [light(over(colour(style.color), behind)), light(behind)].sort((a, b) => b - a);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    if (pair[0] / pair[1] < (large ? 3 : 4.5)) poor.push([text.slice(0, 40), parent.className, pair[0] / pair[1]]);
  }
  return poor;
}"""
"""Texts whose contrast with what is behind them is below level AA of WCAG 2.1 (criterion 1.4.3)."""


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
    # the socket listens already: what is asked before the server runs waits in its queue
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(PATIENCE / 1000)
    listening.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=list(ARGUMENTS), timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page that notes every request and complaint; strangers and complaints fail the test."""
    asked: list[str] = []
    complaints: list[str] = []
    context = browser.new_context(base_url=address, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    context.close()
    assert asked and not [url for url in asked if urlsplit(url).hostname != "127.0.0.1" and not url.startswith("data:")]
    assert not [text for text in complaints if "status of 40" not in text and "Error Code 400" not in text], "but for what a test asks for on purpose"


def test_a_visit(page: Any, site: Site) -> None:
    page.goto("/pairs")
    assert page.locator(".pair-card").count() == 20 and page.title() == "Pairs · palate", "a prompt's onerror never ran"
    page.keyboard.press("j")
    page.wait_for_url("**/pairs?after=19")
    assert "21–40 of 60" in page.locator(".pager").inner_text()

    # filters change the list in place, and the address with it
    page.locator("select[name=outcome]").select_option("wrong")
    expect(page.locator(".pair-card")).to_have_count(3)
    expect(page).to_have_url("/pairs?outcome=wrong")  # without the filters that were left empty
    page.keyboard.press("/")
    page.keyboard.type("answer 58")
    expect(page.locator(".pair-card")).to_have_count(1)
    expect(page).to_have_url("/pairs?text=answer+58&outcome=wrong")
    page.goto("/pairs?outcome=wrong")
    page.locator("select[name=sort]").select_option("disagreement")
    expect(page.locator(".pair-card .name").first).to_have_text("row 60")
    expect(page).to_have_url("/pairs?outcome=wrong&sort=disagreement")
    page.go_back()
    expect(page).to_have_url("/pairs?outcome=wrong")
    expect(page.locator("select[name=sort]")).to_have_value("")
    expect(page.locator(".pair-card .name").first).to_have_text("row 58")

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


def test_two_annotators_at_once(page: Any, browser: Any, site: Site, address: str) -> None:
    """Each sees their own queue, sides and progress, whatever the other does in between, reloads and undoing among it."""
    with browser.new_context(base_url=address) as beside:
        other = beside.new_page()
        other.set_default_timeout(PATIENCE)
        other.goto("/labels")
        other.locator("[data-opens='dialog.annotator']").click()
        other.locator("dialog.annotator input").fill("bob")
        other.locator("dialog.annotator button.main").click()
        expect(other.locator(".who")).to_contain_text("bob")
        for one in (page, other):
            one.goto("/label")
        for key, done in (("a", 1), ("t", 2)):
            for one, name in ((page, "ada"), (other, "bob")):
                one.keyboard.press(key)
                expect(one.locator(".crumbs")).to_contain_text(f"{done} of 3 by {name}")
        other.reload()
        other.keyboard.press("u")
        expect(other.locator(".said")).to_have_text("Undone. Decide again.")
        page.reload()
        assert "2 of 3 by ada" in page.locator(".crumbs").inner_text() and "1 of 3 by bob" in other.locator(".crumbs").inner_text()
        other.reload()
        expect(other.locator(".prompt-box")).to_contain_text("Question 58?")
    assert [(label.annotator, label.verdict) for label in site.labels.current if label.verdict == "tie"] == [("ada", "tie")]


def test_nothing_is_undone_while_a_decision_is_on_its_way(page: Any, site: Site) -> None:
    """`u` right after `a` would take back the decision before it, were it faster."""
    page.goto("/label")
    held: list[Any] = []
    page.route("**/label?*", lambda route: held.append(route) if route.request.method == "POST" else route.continue_())
    page.keyboard.press("a")
    expect(page.locator(".undo")).to_be_disabled()
    page.keyboard.press("u")
    page.keyboard.press("b")
    page.wait_for_function("document.querySelector('.undo').disabled")
    (route,) = held
    route.continue_()
    expect(page.locator(".crumbs")).to_contain_text("1 of 3")
    page.keyboard.press("u")
    expect(page.locator(".said")).to_have_text("Undone. Decide again.")
    assert site.labels.current == [] and len(site.labels.path.read_text().splitlines()) == 2


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
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        padding, top = page.evaluate("[parseFloat(getComputedStyle(document.documentElement).scrollPaddingTop), document.querySelector('.top').offsetHeight]")
        assert padding >= top, "what is jumped to comes below it"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read(page: Any, site: Site, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    site.label({}, {"pair": site.pairs.identity(57), "choice": "a"}, "ada")
    for address in ("/pairs?sort=disagreement", "/pairs/57", "/label?outcome=wrong&blind=0", "/labels", "/prompts/3", "/score", "/training", "/none"):
        page.goto(address)
        assert page.evaluate(POOR_CONTRAST) == [], address


@pytest.mark.parametrize("width", [400, 900, 1600])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for address in ("/pairs", "/pairs/3", "/label", "/labels", "/prompts", "/prompts/3", "/score", "/training"):
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, address
        assert page.title().endswith("palate"), "nothing in the data ran"


def test_what_goes_wrong_is_said_on_the_page(page: Any, site: Site, address: str) -> None:
    page.set_viewport_size({"width": 1280, "height": 300})
    page.goto("/label")
    site.labels.path.write_text("no label\n")
    page.evaluate("window.scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
    page.keyboard.press("a")
    expect(page.locator("#notice")).to_be_in_viewport()
    assert "no label" in page.locator("#notice").inner_text()
    site.labels.path.unlink()
