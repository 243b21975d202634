"""Who may ask, what every answer says, and that nothing in the data can run."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.explorer.sites import ADDRESS, client_of, pairs_of, site_of, writing

from palate.explorer.assets import FILES
from palate.explorer.guard import HEADERS, LARGEST_BODY, POLICY
from palate.explorer.site import Site

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</textarea><script>alert(2)</script>",
    "[a link](javascript:alert(3)) <a href='javascript:alert(4)'>x</a>",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "</title></head><body onload=alert(5)> \x00\x1b \u202e",
    "' autofocus onfocus='alert(6)",
)

PAGES = ("/pairs", "/pairs?sort=longer", "/pairs/0", "/label", "/label?blind=0", "/labels", "/measures", "/measures/report", "/compare", "/compare/report") + (
    ("/prompts", "/prompts/0", "/score", "/training", "/nope", "/pairs/99", "/pairs?sort=x", "/label?pair=x")
)


class Tags(HTMLParser):
    """Elements and attributes of a page as a browser reads them."""

    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def hostile_site(tmp_path: Path) -> Site:
    rows = [
        {"prompt": f"{text} {i}", "chosen": f"{text} good {i}", "rejected": f"{text} bad {i}", "domain": text, "id": text, "note": text}
        for i, text in enumerate(HOSTILE * 2)
    ]
    margins = [3.0] * 12 + [-4.0, -0.5]
    return site_of(tmp_path, pairs_of(rows, margins, other=[1.0] * 13 + [-1.0]))


@pytest.mark.parametrize("address", PAGES)
def test_nothing_in_the_data_becomes_markup(hostile_site: Site, address: str) -> None:
    client = client_of(hostile_site)
    hostile_site.label({}, {"pair": hostile_site.pairs.identity(1), "choice": "a"}, "ada")
    answer = client.get(address)
    assert answer.status_code in (200, 400, 404)
    tags = Tags(answer.text).found
    for tag, attributes in tags:
        assert tag not in ("iframe", "object", "embed", "style", "base", "body") or not attributes or tag == "body"
        assert not [name for name in attributes if name.startswith("on") or name == "style"], (tag, attributes)
        for name in ("href", "src", "action", "hx-get", "hx-post"):
            value = attributes.get(name)
            assert value is None or value.startswith(("/", "#", "data:,", "data:image/png")), (tag, name, value)
        if tag == "script":
            assert re.fullmatch(r"/static/(htmx|keys)\.js\?v=\w+", attributes["src"] or "")
        if tag == "img":
            raise AssertionError("no page has a picture that is not SVG")
    assert sum(tag == "body" for tag, _ in tags) == (0 if address.endswith("/report") else 1)


def test_a_hostile_search_and_name_are_text(hostile_site: Site) -> None:
    client = client_of(hostile_site)
    for text in HOSTILE:
        page = client.get("/pairs", params={"text": text}).text
        assert "alert" not in re.sub(r"&[#\w]+;", "", "".join(re.findall(r"<script[^>]*>(.*?)</script>", page)))
        assert not [1 for tag, attributes in Tags(page).found if "onerror" in attributes or "onfocus" in attributes]
    client.cookies.set("annotator", quote("<b>ada</b>"))
    answer = client.get("/labels")
    assert "&lt;b&gt;ada" in answer.text and "<b>ada" not in answer.text


def test_every_answer_carries_the_policy(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    client = client_of(site)
    answers = [client.get(address) for address in (*PAGES, "/static/keys.js", "/static/none", "/labels/export/preferences")]
    answers += [client.post("/label"), client.get("/pairs", headers={"host": "evil.example"}), client.put("/pairs", headers=writing(site))]
    for answer in answers:
        assert all(answer.headers[name] == value for name, value in HEADERS.items()), answer.url
    assert "default-src 'self'" in POLICY and "unsafe" not in POLICY
    assert all(answer.headers["cache-control"] == "no-store" for answer in answers[:8])


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8321", "127.0.0.1.evil.example", "", "[::1", "localhost@evil.example:80"])
def test_strange_hosts_are_refused(tmp_path: Path, host: str) -> None:
    answer = client_of(site_of(tmp_path)).get("/pairs", headers={"host": host})
    assert answer.status_code in (400, 421) and "name a fruit" not in answer.text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost:8321", "LOCALHOST", "[::1]:8321"])
def test_this_machine_is_welcome(tmp_path: Path, host: str) -> None:
    assert client_of(site_of(tmp_path)).get("/pairs", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"X-Palate-Token": ""}, 403),
        ({"X-Palate-Token": "wrong"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_writes_need_token_and_origin(tmp_path: Path, changed: dict[str, str], status: int) -> None:
    site = site_of(tmp_path)
    form = {"pair": site.pairs.identity(0), "choice": "a"}
    for address in ("/label", "/undo", "/annotator", "/score"):
        assert client_of(site).post(address, data=form, headers=writing(site, **changed)).status_code == status
    assert not site.labels.path.exists()
    assert client_of(site).post("/label", data=form, headers=writing(site)).status_code == 200
    assert len(site.labels.path.read_text().splitlines()) == 1


def test_bodies_are_bounded(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    client = client_of(site)
    assert client.post("/label", content=b"x" * (LARGEST_BODY + 1), headers=writing(site)).status_code == 413
    assert client.post("/label", content=iter([b"pair=", b"x"]), headers=writing(site)).status_code == 411, "a body of unknown length is not read"
    chunked = writing(site, **{"Content-Length": "5", "Transfer-Encoding": "chunked"})
    assert client.post("/label", content=b"pair=", headers=chunked).status_code == 411, "nor one whose length may be a lie"
    assert client.post("/label", data={f"field-{i}": "x" for i in range(50)}, headers=writing(site)).status_code == 400


OUTSIDE = ("../site.py", "..%2fsite.py", "%2e%2e/site.py", "....//site.py", "site.py", "page.css/../../site.py", "keys.js%00", "/etc/passwd")


@pytest.mark.parametrize("name", OUTSIDE)
def test_only_named_files_are_served(tmp_path: Path, name: str) -> None:
    answer = client_of(site_of(tmp_path)).get(f"/static/{name}")
    assert answer.status_code == 404 and "Starlette" not in answer.text


def test_the_files_that_are_served(tmp_path: Path) -> None:
    client = client_of(site_of(tmp_path))
    for name in FILES:
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200 and len(answer.content) > 500
    style = client.get("/static/page.css").text + client.get("/static/explorer.css").text
    assert "url(" not in style and "@import" not in style, "styles load nothing"


def test_beyond_this_machine_everybody_needs_the_key(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    stranger: Any = client_of(site, key="secret", hosts=())
    assert stranger.get("/pairs").status_code == 403 and "name a fruit" not in stranger.get("/pairs?key=wrong").text
    assert stranger.get("/pairs", headers={"cookie": "palate-key=wrong"}).status_code == 403
    answer = stranger.get("/?key=secret", follow_redirects=False, headers={"host": "lab.example:8321"})
    assert answer.status_code == 303 and "HttpOnly" in answer.headers["set-cookie"] and "SameSite=Strict" in answer.headers["set-cookie"]
    friend = client_of(site, key="secret")
    friend.cookies.set("palate-key", "secret")
    assert friend.get("/pairs", headers={"host": "lab.example"}).status_code == 200
    assert friend.post("/label", data={}, headers={"host": "lab.example"}).status_code == 403, "the key is no token for writes"


def test_the_address_of_a_page_is_said_to_no_other_site() -> None:
    assert HEADERS["referrer-policy"] == "no-referrer" and ADDRESS.startswith("http://127.0.0.1")
