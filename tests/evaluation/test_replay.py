"""Published figures from the records that they were computed of. The records lie beside the checkout, never in it; without them these tests skip."""

from __future__ import annotations

import json
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from palate.evaluation.benchmarks import BENCHMARKS, load_items, read_records, report
from palate.evaluation.judges import judge_figures, judge_items, judgment_records
from palate.evaluation.protocols.matrix import rm_bench
from palate.evaluation.protocols.orders import judgebench, two_orders
from palate.evaluation.protocols.preferences import pandalm, win_rate
from palate.evaluation.protocols.rewardbench import REWARDBENCH2_DOMAINS, best_of_credit, rewardbench2, rewardbench_sections, ties_score
from palate.judging.caller import Caller
from palate.judging.function_client import FunctionClient
from palate.judging.judge import ChatJudge
from palate.stats.composite import Estimate, weighted
from palate.types import Matchup

REPLAY = Path(__file__).resolve().parents[3] / "shared" / "replay"


@pytest.fixture(scope="module")
def replay() -> Path:
    folder = Path(os.environ.get("PALATE_SHARED_REPLAY", REPLAY))
    if not folder.is_dir():
        pytest.skip(f"no recorded outputs at {folder} (set PALATE_SHARED_REPLAY)")
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def llmbar_runs(replay: Path) -> list[dict[str, Any]]:
    return rows(replay / "llmbar_verdicts.jsonl")


def published(text: str) -> float:
    """`29 / 54 = 53.70%` or `48.148%` -> a share."""
    if "/" in text:
        part, whole = text.split("=")[0].split("/")
        return int(part) / int(whole)
    return float(text.rstrip("%")) / 100


# --- LLMBar --------------------------------------------------------------------------------------------------------------------------------------------


def test_llmbar_every_published_statistic(llmbar_runs: list[dict[str, Any]]) -> None:
    """499 of 499 runs: right in each order, on average, in both, and equal verdicts."""
    assert len(llmbar_runs) == 499
    for run in llmbar_runs:
        table = two_orders(run["labels"], run["winner_order12"], run["winner_order21"])
        stated = {name: published(run["statistics"][name]) for name in ("correct_False", "correct_True", "correct_average", "correct_both", "equal")}
        found = (table.first, table.second, table.average, table.both, table.equal)
        assert found == pytest.approx(tuple(stated.values()), abs=1e-12), (run["dataset"], run["base_llm"], run["strategy"])
        assert table.n == run["n"]
        assert table.invalid == sum(verdict is None for verdict in (*run["winner_order12"], *run["winner_order21"]))


def test_kappa_is_sklearns_on_every_run(llmbar_runs: list[dict[str, Any]]) -> None:
    """The published kappas map winners oddly; these are Cohen's."""
    for run in llmbar_runs[::5]:
        labels, first, second = ([str(value) for value in run[name]] for name in ("labels", "winner_order12", "winner_order21"))
        table = two_orders(labels, run["winner_order12"], run["winner_order21"])
        for ours, a, b in ((table.kappa_first, labels, first), (table.kappa_second, labels, second), (table.kappa_orders, first, second)):
            if math.isnan(ours):  # both say one and the same label throughout
                assert len({*a, *b}) == 1
            else:
                assert ours == pytest.approx(cohen_kappa_score(a, b), abs=1e-12)


def test_dropping_contradictions_on_llmbar(llmbar_runs: list[dict[str, Any]]) -> None:
    """GPT-4 with CoT: kept and right of what is kept, as the README of the records has them, in per cent."""
    expected = {"Natural": (91.0, 98.9), "Neighbor": (90.3, 77.7), "GPTInst": (90.2, 86.7), "GPTOut": (87.2, 78.0), "Manual": (82.6, 78.9)}
    for run in llmbar_runs:
        subset = run["dataset"].split("/")[-1]
        if (run["base_llm"], run["strategy"]) == ("GPT-4", "CoT") and subset in expected:
            table = two_orders(run["labels"], run["winner_order12"], run["winner_order21"])
            assert (100 * table.kept, 100 * table.kept_accuracy) == pytest.approx(expected.pop(subset), abs=0.05)
            figures = judge_figures(run["labels"], run["winner_order12"], run["winner_order21"], np.arange(run["n"]))
            assert figures["accuracy"]["value"] == pytest.approx(table.average)
            assert (figures["kept"]["value"], figures["kept_accuracy"]["value"]) == pytest.approx((table.kept, table.kept_accuracy))
    assert not expected


def by_judge(runs: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Runs of LLMBar's five subsets by (base_llm, strategy)."""
    found = defaultdict(list)
    for run in runs:
        if run["dataset"].startswith("LLMBar/"):
            found[run["base_llm"], run["strategy"]].append(run)
    return {judge: part for judge, part in found.items() if len(part) == 5}


def test_llmbar_runs_through_a_file_of_records(llmbar_runs: list[dict[str, Any]], tmp_path: Path) -> None:
    """A run as columns -> one record an item -> the report, for all 65 judges that were run on the five subsets."""
    judges = by_judge(llmbar_runs)
    assert len(judges) == 65
    for judge, runs in list(judges.items())[::8]:
        path = tmp_path / "runs.jsonl"
        path.write_text("".join(json.dumps(run) + "\n" for run in runs), encoding="utf-8")
        records = read_records(path)
        assert len(records) == 419
        found = report(BENCHMARKS["llmbar"], records)
        stated = {run["dataset"].split("/")[-1]: published(run["statistics"]["correct_average"]) for run in runs}
        for subset, value in stated.items():
            assert found["scores"][subset]["value"] == pytest.approx(value, abs=1e-12), (judge, subset)
        assert found["scores"]["average"]["value"] == pytest.approx(np.mean(list(stated.values())), abs=1e-12)
        assert found["scores"]["Adversarial"]["value"] == pytest.approx(np.mean([v for k, v in stated.items() if k != "Natural"]), abs=1e-12)
        same = sum(int(run["statistics"]["equal"].split("/")[0]) for run in runs) / 419
        assert found["scores"]["same verdict in both orders"]["value"] == pytest.approx(same, abs=1e-12)
        assert found["items"] == 419 and found["unscored"] == sum(None in pair for run in runs for pair in pairs(run))


def pairs(run: dict[str, Any]) -> list[tuple[Any, Any]]:
    return list(zip(run["winner_order12"], run["winner_order21"], strict=True))


def test_llmbars_raw_records_give_the_figures_of_their_runs(replay: Path, llmbar_runs: list[dict[str, Any]], tmp_path: Path) -> None:
    """Raw completions of 13 judges. A Swap run's verdicts are those of its second look where the orders contradict."""
    stated = {
        key: {run["dataset"].split("/")[-1]: published(run["statistics"]["correct_average"]) for run in runs} for key, runs in by_judge(llmbar_runs).items()
    }
    raw = defaultdict(list)
    for row in rows(replay / "llmbar_raw.jsonl"):
        raw[row["base_llm"], row["strategy"]].append(row | {"subset": row["id"].rsplit("-", 1)[0]})
    assert len(raw) == 13
    wrong = []
    for judge, part in raw.items():
        path = tmp_path / "raw.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part), encoding="utf-8")
        found = report(BENCHMARKS["llmbar"], read_records(path))["scores"]
        wrong += [(*judge, subset) for subset, value in stated[judge].items() if found[subset]["value"] != pytest.approx(value, abs=1e-12)]
    assert not wrong


def test_llmbars_raw_first_looks_agree_with_the_runs(replay: Path, llmbar_runs: list[dict[str, Any]]) -> None:
    """Strategies of one stage, read from their raw records: the same verdicts, item by item."""
    runs = {(run["base_llm"], run["strategy"], run["dataset"].split("/")[-1]): run for run in llmbar_runs if run["dataset"].startswith("LLMBar/")}
    members = defaultdict(list)
    for row in rows(replay / "llmbar_raw.jsonl"):
        subset, number = row["id"].rsplit("-", 1)
        if "synthesis" not in row:
            members[row["base_llm"], row["strategy"], subset.split("-")[-1]].append((int(number), row))
    assert len(members) == 40
    for key, part in members.items():
        ordered = [row for _, row in sorted(part, key=lambda pair: pair[0])]
        table = two_orders(*([row["label"] for row in ordered], *([row["judgments"][order]["winner"] for row in ordered] for order in ("12", "21"))))
        run = runs[key]
        assert table.average == pytest.approx(published(run["statistics"]["correct_average"]), abs=1e-12)
        assert table.equal == pytest.approx(published(run["statistics"]["equal"]), abs=1e-12)


@pytest.mark.parametrize("judge", [("GPT-4", "CoT"), ("LLaMA2", "Vanilla")])
def test_a_live_judge_is_scored_as_its_record_is(
    judge: tuple[str, str], replay: Path, shared_data: Path, llmbar_runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The recorded replies given again by a chat model, asked about LLMBar's own items: the report of the recorded verdicts, digit for digit."""
    raw = {row["id"]: row for row in rows(replay / "llmbar_raw.jsonl") if (row["base_llm"], row["strategy"]) == judge}
    items = [row for row in rows(shared_data / "llmbar.jsonl") if row["id"] in raw]
    # the items lie with the better response as `chosen`; the record's response 1 is the better one where its label is 1
    ends = {"1": ("A>B", "B>A"), "2": ("B>A", "A>B"), "tie": ("A=B", "A=B")}
    script: dict[str, str] = {}
    chat = ChatJudge(Caller(FunctionClient(lambda request: script[str(request.messages)])), "replayed", repairs=0, resamples=0)
    for item in items:
        row = raw[item["id"]]
        sides = (item["chosen"], item["rejected"])[:: 1 if row["label"] == 1 else -1]
        for k, order in enumerate(("12", "21")):
            said = row["judgments"][order]
            asked = chat.render(Matchup(item["prompt"], *sides[:: 1 - 2 * k]))
            script[str(asked.messages)] = said["text"] + (f" [[{ends[said['winner']][k]}]]" if said["winner"] else "")
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    benchmark = BENCHMARKS["llmbar"]
    live = report(benchmark, judgment_records(judge_items(chat, load_items(benchmark, path))))
    runs = tmp_path / "runs.jsonl"
    runs.write_text("".join(json.dumps(run) + "\n" for run in by_judge(llmbar_runs)[judge]), encoding="utf-8")
    recorded = report(benchmark, read_records(runs))
    assert live["items"] == 419 and live["unscored"] == recorded["unscored"] and live["note"] == recorded["note"]
    for name, score in recorded["scores"].items():
        assert live["scores"][name]["value"] == pytest.approx(score["value"], abs=1e-12), name
        assert live["scores"][name]["n"] == score["n"]


# --- PandaLM, AlpacaEval -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("judge", "expected", "unread"), [("gpt35", (71.07, 58.79, 57.36, 57.55), 25), ("pandalm7b", (66.77, 57.38, 57.50, 57.43), 0)])
def test_pandalms_published_figures(replay: Path, judge: str, expected: tuple[float, ...], unread: int) -> None:
    """Accuracy, macro precision, recall and F1 in per cent; "garbage" counts as a tie."""
    records = [{"id": row["id"], "votes": row["votes"], "verdict": row[judge]} for row in rows(replay / "pandalm_judges.jsonl")]
    found = pandalm(records)
    values = [100 * found.scores[name].value for name in ("accuracy", "macro precision", "macro recall", "macro f1")]
    assert [round(value, 2) for value in values] == list(expected)
    assert found.scores["accuracy"].n == 999 and found.unscored == unread


def test_alpaca_eval_2_leaderboard(replay: Path) -> None:
    """57 of 57 models: win rate, standard error, wins, losses, draws, discrete win rate."""
    leaderboard = json.loads((replay / "alpaca_eval2_published.json").read_text())["leaderboard"]
    judged = {row["model"]: row["preference"] for row in rows(replay / "alpaca_eval2_judgments.jsonl")}
    assert len(leaderboard) == 57
    for model, stated in leaderboard.items():
        found = win_rate(judged[model])
        assert (found.win_rate, found.standard_error) == pytest.approx((stated["win_rate"], stated["standard_error"]), abs=1e-9), model
        assert (found.wins, found.losses, found.draws, found.n) == tuple(stated[name] for name in ("n_wins", "n_wins_base", "n_draws", "n_total")), model
        assert found.discrete_win_rate == pytest.approx(stated["discrete_win_rate"], abs=1e-9), model


# --- RewardBench, RewardBench 2, RM-Bench ------------------------------------------------------------------------------------------------------------------


def test_rewardbenchs_readme_example(replay: Path) -> None:
    example = json.loads((replay / "rewardbench_readme_example.json").read_text())
    found = rewardbench_sections(example["subsets"])
    assert {name: found[name].value for name in example["sections"]} == pytest.approx(example["sections"], abs=1e-12)
    assert found["overall"].value == pytest.approx(np.mean(list(example["sections"].values())), abs=1e-12)
    assert "Prior Sets" not in found


def test_rewardbench_2_table_3(replay: Path) -> None:
    """Averages of 25 models from domain scores printed with one decimal."""
    table = json.loads((replay / "rewardbench2_table3.json").read_text())
    assert len(table) == 25
    for row in table:
        average, *domains = row["values"]
        assert len(domains) == len(REWARDBENCH2_DOMAINS)
        mean = weighted([Estimate(value / 100, value / 100, value / 100, 0) for value in domains]).value
        assert abs(100 * mean - average) <= 0.0501, row["model"]


@pytest.fixture(scope="module")
def golden(replay: Path) -> dict[str, Any]:
    return json.loads((replay / "golden_metrics.json").read_text())


@pytest.mark.parametrize("case", range(8))
def test_golden_ties_scores(golden: dict[str, Any], case: int) -> None:
    one = golden["rb2_ties"][case]
    assert ties_score(one["rows"]) == pytest.approx(one["overall"], abs=1e-12)
    found = rewardbench2([{**row, "subset": "Ties"} for row in one["rows"]], partial=True).scores["Ties"]
    assert found.value == pytest.approx(one["overall"], abs=1e-12) and found.low <= found.high


@pytest.mark.parametrize("case", range(6))
def test_golden_best_of_four(golden: dict[str, Any], case: int) -> None:
    one = golden["rb2_best_of_4"][case]
    assert best_of_credit(one["scores"]) == pytest.approx(one["result"], abs=1e-12)


@pytest.mark.parametrize("case", range(4))
def test_golden_rm_bench_matrices(golden: dict[str, Any], case: int) -> None:
    one = golden["rmbench"][case]
    scores = {name: estimate.value for name, estimate in rm_bench(one["rows"]).scores.items()}
    names = {"hard": "hard_acc", "normal": "normal_acc", "easy": "easy_acc", "overall": "total_avg_acc", **{d: d for d in ("chat", "math", "code", "safety")}}
    for ours, theirs in names.items():
        assert scores[ours] == pytest.approx(one["by_domain"][theirs], abs=1e-12), ours
    for name in ("hard", "normal", "easy"):
        assert scores[f"pooled {name}"] == pytest.approx(one["pooled"][f"{name}_acc"], abs=1e-12), name
    assert report(BENCHMARKS["rm-bench"], one["rows"])["scores"]["overall"]["value"] == pytest.approx(one["by_domain"]["total_avg_acc"], abs=1e-12)


def test_llmbar_verdicts_as_judgebench_counts_them(llmbar_runs: list[dict[str, Any]]) -> None:
    """The net count of a run read as JudgeBench's decisions, the second order turned back: right where right verdicts outnumber wrong ones."""
    turned = {"1": "B>A", "2": "A>B", None: None}
    straight = {"1": "A>B", "2": "B>A", None: None}
    for run in llmbar_runs[::50]:
        records = [
            {"source": "livecodebench", "label": label, "decisions": [straight[a], turned[b]]} for label, (a, b) in zip(run["labels"], pairs(run), strict=True)
        ]
        net = two_orders(run["labels"], run["winner_order12"], run["winner_order21"]).net
        assert judgebench(records, partial=True).scores["overall"].value == pytest.approx(net, abs=1e-12)
