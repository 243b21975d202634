"""The pages: what they show for small made data, with and without rewards, a model, labels, a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import TOKENIZERS, tiny_model
from tests.explorer.sites import client_of, disputed, pairs_of, site_of, writing

from palate.cli.ui import default_labels, main, parse
from palate.data.loading import load_groups
from palate.errors import DataError
from palate.evaluation.evaluator import evaluate_scored
from palate.explorer.candidates import Candidates
from palate.explorer.figures import without_styles
from palate.explorer.labels import Label, LabelFile, choice_of, left_side
from palate.explorer.measures import LEFT_OUT, Measures, different_names
from palate.explorer.pairs import Pairs
from palate.explorer.rewards import Model, Rewards, unscored
from palate.explorer.shown import EXCERPT, excerpt, turns, whole_pair
from palate.explorer.site import ROWS as PAGE_ROWS
from palate.reports.result_sections import result_cards, result_lead, result_sections
from palate.scoring.sources import Opened
from palate.types import Exchange


class Lengths:
    """The reward is a hundredth of the number of characters; NaN beyond a thousand."""

    def score(self, conversations: Any, **_: Any) -> np.ndarray:
        sizes = np.array([len(str(one.response)) for one in conversations], dtype=float)
        return np.where(sizes > 1000, np.nan, sizes / 100)


LENGTHS = Model(Opened(Lengths(), {"name": "lengths"}, None))


def many(n: int) -> Pairs:
    random = np.random.default_rng(0)
    rows = [{"prompt": f"p {i}", "chosen": f"good {i} " + "x" * (i % 7), "rejected": f"bad {i}", "domain": f"d{i % 3}"} for i in range(n)]
    return pairs_of(rows, random.normal(1.0, 1.5, n).tolist(), other=random.normal(0.8, 1.5, n).tolist())


# --- browsing -------------------------------------------------------------------------------------------------------------------------------------


def test_the_first_page_shows_pairs_and_their_accuracy(tmp_path: Path) -> None:
    page = client_of(site_of(tmp_path)).get("/pairs").text
    assert page.count('class="pair-card') == 6 and "66.7 %" in page, "four of six margins are above 0"
    assert "contradictions (2)" in page and "places (3)" in page
    wrong = client_of(site_of(tmp_path)).get("/pairs?outcome=wrong").text
    assert wrong.count('class="pair-card') == 2 and "accuracy" not in wrong, "of rows picked by their rewards accuracy says nothing"


def test_paging_visits_every_row_once(tmp_path: Path) -> None:
    site = site_of(tmp_path, many(2 * PAGE_ROWS + 3))
    client, seen, address = client_of(site), [], "/pairs?sort=disagreement"
    while address:
        page = client.get(address).text
        import re

        seen += [int(row) for row in re.findall(r'class="over" href="/pairs/(\d+)', page)]
        following = re.search(r'href="([^"]+)" data-key="j"', page)
        address = following[1].replace("&amp;", "&") if following else ""
    assert seen == np.argsort(site.pairs.margin, kind="stable").tolist()


def test_nothing_fits_and_bad_questions_are_said(tmp_path: Path) -> None:
    client = client_of(site_of(tmp_path))
    assert "Nothing fits" in client.get("/pairs?text=zebra").text
    answer = client.get("/pairs?sort=best")
    assert answer.status_code == 400 and "expected one of" in answer.text
    assert client.get("/pairs/6").status_code == 404 and client.get("/prompts/99").status_code == 404 and client.get("/labels/export/x").status_code == 404
    assert client.get("/", follow_redirects=False).headers["location"] == "/pairs"


def test_rows_that_could_not_be_read_are_counted(tmp_path: Path) -> None:
    loaded = load_groups([{"prompt": "p", "chosen": "a", "rejected": "b"}, {"prompt": "p", "chosen": "a", "rejected": "a"}], on_bad_row="drop")
    pairs = Pairs(loaded.groups, unscored(loaded.groups), report=loaded.reports[0])
    assert "1 row of 2 could not be read: 1 × identical sides." in client_of(site_of(tmp_path, pairs)).get("/pairs").text


def test_one_pair_whole(tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(600))
    row = {"prompt": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "say it"}], "chosen": f"{words} yes", "rejected": f"{words} no"}
    pairs = pairs_of([row], [0.4])
    shown = whole_pair(pairs, 0)
    assert "".join(piece.text for piece in shown.chosen.pieces) == row["chosen"], "no character of a whole pair is lost, however long"
    assert [turn.role for turn in shown.prompt] == ["system", "user"] and shown.gap == 1
    part = excerpt(pairs, 0)
    assert part.prompt[0].text == "say it"
    left, right = ("".join(piece.text for piece in side.pieces) for side in (part.chosen, part.rejected))
    assert left.endswith("yes") and right.endswith("no") and len(left) < EXCERPT, "an excerpt begins shortly before the sides part"
    page = client_of(site_of(tmp_path, pairs)).get("/pairs/0").text
    assert "59.9 %" in page and "be kind" in page
    assert turns("") == [] and turns("plain")[0].role == ""


def test_without_rewards_there_is_still_something_to_read(tmp_path: Path) -> None:
    groups = pairs_of().groups
    client = client_of(site_of(tmp_path, Pairs(groups, unscored(groups))))
    assert client.get("/pairs").text.count('class="pair-card') == 6
    assert "--model" in client.get("/measures").text and client.get("/measures/report").status_code == 400
    assert "--compare" in client.get("/compare").text and client.get("/compare/report").status_code == 400
    assert "--run" in client.get("/training").text and "--model" in client.get("/score").text
    assert client.get("/pairs/0/heat").status_code == 400
    assert client.get("/label", follow_redirects=False).headers["location"] == "/label?sort=random"


# --- labelling ------------------------------------------------------------------------------------------------------------------------------------


def test_the_queue_is_blind_and_moves_on(tmp_path: Path) -> None:
    site = site_of(tmp_path, disputed())
    client = client_of(site)
    assert "likely mislabelled</span>" in client.get("/pairs?sort=disagreement").text
    page = client.get("/label").text
    assert "name a river" in page and "0 of 1 by ada" in page
    task = page[page.index('<main id="task"') :]
    assert "-3.00" not in task and "−3.00" not in task and "chosen" not in task and "rejected" not in task, "nothing tells which side the data prefer"
    shown = client.get("/label?outcome=suspect&blind=0").text
    assert "−3.000" in shown and "rejected" in shown
    answer = client.post("/label?outcome=suspect&sort=disagreement", data={"pair": site.pairs.identity(30), "choice": "b"}, headers=writing(site))
    assert "All done" in answer.text
    (row,) = [json.loads(line) for line in site.labels.path.read_text().splitlines()]
    left = left_side(site.pairs.identity(30), "ada")
    assert row["verdict"] == ("rejected" if left == "chosen" else "chosen") and row["left"] == left and row["blind"] is True
    assert row["annotator"] == "ada" and row["location"] == "list row 31"


def test_labels_are_found_after_a_restart_and_undone(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    client = client_of(site)
    for row, choice in ((4, "tie"), (0, "a")):
        client.post("/label?sort=random", data={"pair": site.pairs.identity(row), "choice": choice}, headers=writing(site))
    later = site_of(tmp_path)
    client = client_of(later)
    assert client.get("/pairs?labelled=any").text.count('class="pair-card') == 3, "rows 4 and 5 are one pair"
    assert "3 of 6 by ada" in client.get("/label?sort=random").text
    bob = client_of(later)
    bob.cookies.set("annotator", "bob")
    assert "0 of 6 by bob" in bob.get("/label?sort=random").text
    undone = client.post("/undo?sort=random", headers={**writing(later), "content-length": "0"})
    assert "Undone" in undone.text and later.pairs.identity(0) in undone.text and "2 of 6 by ada" in undone.text
    client.post("/undo", headers={**writing(later), "content-length": "0"})
    assert "Nothing to undo" in client.post("/undo", headers={**writing(later), "content-length": "0"}).text


def test_a_label_that_comes_in_between_is_seen_next_time(tmp_path: Path) -> None:
    """Another annotator's label arrives while the columns of labels are made: they must not pass for up to date."""
    site = site_of(tmp_path)
    pairs = [site.pairs.identity(row) for row in (0, 1)]
    site.label({}, {"pair": pairs[0], "choice": "tie"}, "ada")

    class Busy(LabelFile):
        @property
        def current(self) -> list[Label]:
            found = super().current
            if len(found) == 1:
                self.add(Label(pairs[1], "bob", "2026-03-01T12:00:00+00:00", "tie", "chosen", True))
            return found

    site.labels = Busy(site.labels.path)
    site.labelled()
    assert site.labelled().any.tolist() == [True, True, False, False, False, False]


def test_labels_of_pairs_that_vanished_stay_and_are_named(tmp_path: Path) -> None:
    before = site_of(tmp_path, disputed())
    gone = before.pairs.identity(30)
    before.label({}, {"pair": gone, "choice": "a"}, "ada")
    site = site_of(tmp_path)
    client = client_of(site)
    client.post("/label", data={"pair": site.pairs.identity(1), "choice": "a"}, headers=writing(site))
    page = client.get("/labels").text
    assert "2 decisions" in page and "1 of them on pairs of these data" in page and "list row 31 <small>(other data)" in page
    assert "1 of 6 by ada" in client.get("/label?sort=random").text
    assert len(client.get("/labels/export/preferences").text.splitlines()) == 1
    late = client.post("/label", data={"pair": gone, "choice": "a"}, headers=writing(site))
    assert late.status_code == 400 and "not in these data" in late.text and client.get(f"/label?pair={gone}").status_code == 400
    nothing = {**writing(site), "content-length": "0"}
    assert "Decide again" in client.post("/undo", headers=nothing).text and "a pair of other data" in client.post("/undo", headers=nothing).text
    assert "No labels yet" in client.get("/labels").text and len(site.labels.path.read_text().splitlines()) == 4


@pytest.mark.parametrize("verdicts", [[("tie", "tie")], [("chosen", "rejected")], [("chosen", "chosen"), ("tie", "tie")]])
def test_agreement_on_few_pairs_claims_little(tmp_path: Path, verdicts: list[tuple[str, str]]) -> None:
    """One pair, or full agreement: kappa may be undefined, and an interval without width is none."""
    site = site_of(tmp_path)
    for row, both in enumerate(verdicts):
        pair = site.pairs.identity(row)
        for name, verdict in zip(("ada", "bob"), both, strict=True):
            site.label({}, {"pair": pair, "choice": choice_of(verdict, left_side(pair, name))}, name)
    page = client_of(site).get("/labels").text
    found = next(line for line in page.split("<tr>") if line.startswith('<th scope="row">ada</th><td class="w">bob</td>'))
    kappa = "1.000" if len(verdicts) == 2 else "–" if verdicts[0][0] == verdicts[0][1] else "0.000"
    assert f'<td class="n">{kappa}</td><td class="n">–</td>' in found and "nan" not in page and "rough below about 100 pairs" in page


def test_a_label_of_nothing_is_refused(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    client = client_of(site)
    for form in ({}, {"pair": "zz", "choice": "a"}, {"pair": site.pairs.identity(0), "choice": "c"}):
        assert client.post("/label", data=form, headers=writing(site)).status_code == 400
    assert not site.labels.path.exists()


def test_annotators_have_names_of_their_own(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    client = client_of(site)
    answer = client.post("/annotator", data={"name": " Grace  Hopper é "}, headers=writing(site))
    assert answer.status_code == 204 and "HttpOnly" in answer.headers["set-cookie"]
    client.post("/label", data={"pair": site.pairs.identity(1), "choice": "skip"}, headers=writing(site))
    assert [label.annotator for label in site.labels.current] == ["Grace Hopper é"]
    assert client.post("/annotator", data={"name": "  "}, headers=writing(site)).status_code == 400


def test_the_labels_page_counts_and_exports(tmp_path: Path) -> None:
    site = site_of(tmp_path, many(30))
    for row in range(20):
        pair = site.pairs.identity(row)
        for name in ("ada", "bob"):
            wanted = "rejected" if name == "bob" and row < 5 else "chosen"
            site.label({}, {"pair": pair, "choice": choice_of(wanted, left_side(pair, name))}, name)
    page = client_of(site).get("/labels").text
    assert "40 decisions" in page and "75.0 %" in page, "bob is against the data on 5 of 20"
    assert page[page.index("Latest") :].split('scope="row">')[1].startswith('<a href="/pairs/19">list row 20</a></th><td class="w">bob</td>'), (
        "the last one first"
    )
    lines = client_of(site).get("/labels/export/preferences")
    assert len(lines.text.splitlines()) == 20 and "labels-preferences.jsonl" in lines.headers["content-disposition"]
    assert client_of(site).get("/labels/export/argilla").json() and client_of(site).get("/labels/export/label-studio").json()
    assert "yes" in page


# --- figures --------------------------------------------------------------------------------------------------------------------------------------


def test_measures_are_those_of_an_evaluation(tmp_path: Path) -> None:
    pairs = many(90)
    result = evaluate_scored(pairs.items.scored).result
    client = client_of(site_of(tmp_path, pairs))
    assert "Computing" in client.get("/measures").text, "the page comes at once, the figures after it"
    part = client.get("/measures/report").text
    assert f"{100 * result.accuracy:.1f} %" in part and f"{result.calibration['ece']:.3f}" in part and f"{result.length['partial_correlation']:.3f}" in part
    assert part.count("<svg") >= 6 and "style=" not in part and "<style" not in part
    again = client.get("/measures").text
    assert part.strip() in again, "the second time the page holds them"


def test_the_page_of_measures_prints_what_a_saved_evaluation_prints(tmp_path: Path) -> None:
    """Card by card and cell by cell, though the page leaves out what it does not show (the fingerprint of every text)."""
    pairs = many(90)
    result = json.loads(evaluate_scored(pairs.items.scored, model={"name": pairs.model}).save(tmp_path / "results.json").with_name("results.json").read_text())
    report = Measures(pairs).report("measures")
    assert report.lead == result_lead(result) and report.cards == result_cards(result)
    assert report.sections == [section for section in result_sections(result) if section.key not in LEFT_OUT]
    assert {"length", "calibration", "noise", "subsets"} <= {section.key for section in report.sections}


def test_the_comparison_is_that_of_saved_results(tmp_path: Path) -> None:
    from palate.evaluation.comparison import compare_results
    from palate.stats.ranking import spearman

    pairs = many(90)
    assert pairs.other is not None
    paths = [tmp_path / name / "results.json" for name in "ab"]
    for path, items in zip(paths, (pairs.items, pairs.other), strict=True):
        evaluate_scored(items.scored).save(path)
    expected = compare_results(paths, names=["first", "second"])["pairs"][0]
    site = site_of(tmp_path, pairs)
    part = client_of(site).get("/compare/report").text
    assert f"{100 * expected['difference']:+.1f}" in part and f"{expected['p_mcnemar']:.3f}" in part
    assert f"{spearman(pairs.margin, pairs.other.margin):.3f}" in part
    flips = client_of(site).get("/pairs?flip=only_a").text
    assert f"<b>{expected['only_a']}</b> pairs" in flips


def test_names_of_two_models_differ() -> None:
    assert different_names("runs/a", "runs/b") == ["a", "b"] and different_names("x/out", "y/out") == ["x/out", "y/out"]
    assert different_names("out", "out") == ["out (1)", "out (2)"]


def test_the_training_page_reads_the_log(tmp_path: Path) -> None:
    log = [{"step": i, "loss": 1 / i, "accuracy": 0.5 + i / 40, "epoch": i / 10} for i in range(1, 11)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    pairs = pairs_of()
    page = client_of(site_of(tmp_path, pairs, measures=Measures(pairs, tmp_path))).get("/training").text
    assert "<svg" in page and "10 logged rows" in page and "style=" not in page
    (tmp_path / "trainer_state.json").unlink()
    answer = client_of(site_of(tmp_path, pairs, measures=Measures(pairs, tmp_path))).get("/training")
    assert answer.status_code == 400 and "trainer_state.json" in answer.text


def test_styles_become_attributes() -> None:
    text = "<text style=\"font: bold 10.5px 'DejaVu Sans', 'Noto'; text-anchor: start; fill: var(--ink)\">a; b: c</text>"
    given = f'<svg><style type="text/css">*{{stroke-linejoin: round}}</style><g style="fill: none; stroke: var(--blue)">{text}</g></svg>'
    assert without_styles(given) == (
        '<svg><g fill="none" stroke="var(--blue)"><text font-size="10.5" font-weight="bold" text-anchor="start" fill="var(--ink)">a; b: c</text></g></svg>'
    )


# --- candidates and scoring -----------------------------------------------------------------------------------------------------------------------


def test_candidates_of_one_prompt_are_gathered_and_ranked() -> None:
    rows = [
        {"prompt": "Q", "responses": ["low", "high", "middle"], "scores": [1, 3, 2]},
        {"prompt": "q ", "responses": ["high", "unscored"], "scores": [2, 1]},
        {"prompt": "other", "responses": ["a", "b"], "scores": [2, 1]},
    ]
    groups = load_groups(rows).groups
    pairs = Pairs(groups, Rewards(np.array([-1.0, 2.0, 0.5, 2.0, np.nan, 0.0, 0.0]), "m"))
    candidates = Candidates(pairs)
    assert len(candidates) == 2 and candidates.order().tolist() == [0, 1]
    found = candidates.of(0)
    assert [(one.text, one.rank, one.reward, one.wins, one.losses, one.bar) for one in found] == [
        ("high", 1, 2.0, 3, 0, 100),
        ("middle", 2, 0.5, 1, 1, 50),
        ("low", 3, -1.0, 0, 2, 0),
        ("unscored", 0, None, 0, 1, 0),
    ], "equal texts are one candidate; what has no reward comes last"
    assert found[0].ratings == {"score": 3.0} and (candidates.prompt(0).best, candidates.prompt(0).spread) == (2.0, 3.0)
    assert [one.rank for one in candidates.of(1)] == [1, 1], "equal rewards share a rank"


def test_scoring_what_is_pasted(tmp_path: Path) -> None:
    site = site_of(tmp_path, model=LENGTHS)
    client = client_of(site)
    page = client.post("/score", data={"prompt": "p", "a": "x" * 300, "b": "y" * 100}, headers=writing(site)).text
    assert "3.000" in page and "1.000" in page and "88.1 %" in page and "As the response grows" in page
    long = client.post("/score", data={"prompt": "p", "a": "x" * 1001, "b": ""}, headers=writing(site)).text
    assert "too long for the model" in long
    assert client.post("/score", data={"prompt": "p"}, headers=writing(site)).status_code == 400
    chat = json.dumps([{"role": "user", "content": "p"}, {"role": "assistant", "content": "x" * 300}])
    whole = client.post("/score", data={"prompt": chat}, headers=writing(site)).text
    assert whole.count('class="card"') == 1 and "reward of the conversation" in whole
    assert "As the response grows" in client.get("/pairs/0/heat").text


# --- the command ----------------------------------------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_before_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parse(["--data", "x", "--items", "a", "--scores", "b"])
    with pytest.raises(DataError, match="no such file"):
        main(["--data", "missing.jsonl", "--port", "0"])
    from palate.cli.ui import listen
    from palate.errors import ConfigError

    taken = listen("127.0.0.1", 0)
    with pytest.raises(ConfigError, match="choose another --port"):
        main(["--data", "missing.jsonl", "--port", str(taken.getsockname()[1])])
    taken.close()
    assert default_labels("some/prefs.jsonl.gz") == Path("prefs.labels.jsonl")


def test_the_command_puts_everything_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[dict[str, Any]]) -> None:
    from palate.cli.ui import open_site

    monkeypatch.chdir(tmp_path)
    data = tmp_path / "prefs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in [*pairs, {"prompt": "p", "chosen": "", "rejected": "x"}]))
    groups = load_groups(pairs).groups
    n = 2 * len(groups)
    for name, spread in (("a", 1.0), ("b", -1.0)):
        from palate.evaluation.items import with_rewards

        evaluate_scored(with_rewards(groups, spread * np.arange(n)[::-1].astype(float)), model={"name": name}).save(tmp_path / name / "results.json")
    site = open_site(parse(["--data", str(data), "--items", "a", "--compare", "b/results.json", "--annotator", "ada", "--limit", "5"]))
    assert len(site.pairs) == 5 and site.pairs.margin.tolist() == [1.0] * 5 and site.pairs.other is not None
    assert site.pairs.other.margin.tolist() == [-1.0] * 5 and (site.pairs.model, site.pairs.other_model) == ("a", "b")
    assert site.labels.path == Path("prefs.labels.jsonl") and site.annotator == "ada" and site.pairs.report.bad["empty side"] == 1
    assert isinstance(site.labels, LabelFile) and not site.labels.path.exists(), "no file before the first label"


def test_the_command_scores_with_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[dict[str, Any]]) -> None:
    """Two checkpoints, one given as the other model: margins are those of the scorer, the cache is filled, and every option that scoring reads is there."""
    from palate.cli.ui import open_site
    from palate.data.templates import prepare_tokenizer
    from palate.models.reward_model import fit_tokenizer
    from palate.scoring.local import load_scorer

    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        model, tokenizer = tiny_model("qwen3", seed=seed), prepare_tokenizer(TOKENIZERS["qwen3"](), close=False)
        fit_tokenizer(model, tokenizer)
        model.save_pretrained(tmp_path / f"model-{seed}")
        tokenizer.save_pretrained(tmp_path / f"model-{seed}")
    data = tmp_path / "prefs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    site = open_site(parse(["--data", str(data), "--model", "model-1", "--compare", "model-2"]))
    for seed, items in ((1, site.pairs.items), (2, site.pairs.other)):
        scores = load_scorer(tmp_path / f"model-{seed}").score([Exchange(row["prompt"], row[side]) for row in pairs for side in ("chosen", "rejected")])
        np.testing.assert_allclose(items.margin, scores[::2] - scores[1::2], atol=1e-5)
    assert site.pairs.model != site.pairs.other_model and Path(os.environ["PALATE_CACHE"]).is_file()
    assert "Token by token" in client_of(site).get("/pairs/0/heat").text
