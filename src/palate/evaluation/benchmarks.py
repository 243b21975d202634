"""The table of benchmarks: where each one's items lie, which columns they have, and the protocol that turns a model's scores into its figures.

An item becomes a PreferenceGroup like any other row, so benchmarks are scored, cached, compared and drawn as data of one's own are; then the rewards
of each item become a record and the records go through the protocol. Recorded scores of other tools enter as records (`palate eval --scores`).
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from palate.data.loading import read_rows
from palate.errors import ConfigError, DataError, RowError
from palate.evaluation.items import Scored
from palate.evaluation.protocols.matrix import rm_bench
from palate.evaluation.protocols.one_of_n import ppe_correctness, rewardmath
from palate.evaluation.protocols.orders import bench_subset, evalbiasbench, judgebench, llmbar, winner
from palate.evaluation.protocols.preferences import TWINS_SAME, hhh, judgement_bias, majority, pandalm, ppe_preference
from palate.evaluation.protocols.records import Record, Report, check_records
from palate.evaluation.protocols.rewardbench import rewardbench, rewardbench2
from palate.types import Comparison, Conversation, PreferenceGroup

Row = Mapping[str, Any]
Scores = list[float | None]


@dataclass(frozen=True)
class Benchmark:
    name: str
    title: str
    hub: tuple[str, ...]  # data sets on the hub that hold it, `owner/name[:config]`; the config or the name tells subsets apart where no column does
    split: str
    columns: str  # what a row has to have, for messages and documentation
    parse: Callable[[Row], PreferenceGroup]
    record: Callable[[PreferenceGroup, Scores], Record]
    protocol: Callable[..., Report]
    source: str  # paper and code that the protocol was read from
    options: tuple[str, ...] = field(default=())  # what the protocol takes beyond `partial` and `confidence`

    @property
    def pairs(self) -> bool:
        """Whether its protocol takes verdicts on pairs, in both orders."""
        return self.protocol in (judgebench, llmbar, evalbiasbench, rewardbench, hhh)


# --- reading rows ------------------------------------------------------------------------------------------------------------------------------


def _get(row: Row, *names: str) -> Any:
    for name in names:
        if row.get(name) is not None:
            return row[name]
    near = difflib.get_close_matches(names[0], list(row), n=3, cutoff=0.4)
    raise RowError(
        "missing column",
        f"has no column `{names[0]}`"
        + (f" (nor {', '.join(names[1:])})" if names[1:] else "")
        + f"; columns: {', '.join(map(str, row))}"
        + (f"; nearest: {', '.join(near)}" if near else ""),
    )


def _text(row: Row, *names: str) -> Conversation:
    value = _get(row, *names)
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(message, Mapping) and "role" in message for message in value):
        return tuple(value)
    raise RowError("not text", f"column `{names[0]}` holds {type(value).__name__} {value!r:.60}, expected text or messages")


def _texts(row: Row, size: int | None, *names: str) -> tuple[Conversation, ...]:
    value = _get(row, *names)
    if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value) or (size and len(value) != size):
        raise RowError("not text", f"column `{names[0]}` holds {value!r:.60}, expected a list of {size or 'some'} texts")
    return tuple(value)


def _group(row: Row, prompt: Conversation, responses: Sequence[Conversation], pairs: Iterable[tuple[int, int]], **more: Any) -> PreferenceGroup:
    # `pairs` are (better, worse); every item counts once however many pairs it has
    pairs = list(pairs)
    texts = {*row.keys()} - {"id", "subset", "domain", "source", "location"}
    metadata = {key: value for key, value in row.items() if key not in texts} | more
    comparisons = tuple(Comparison(better, worse, weight=1 / len(pairs)) for better, worse in pairs)
    return PreferenceGroup(prompt, tuple(responses), comparisons, metadata={key: value for key, value in metadata.items() if value is not None})


def _pair(row: Row) -> PreferenceGroup:
    return _group(row, _text(row, "prompt"), (_text(row, "chosen"), _text(row, "rejected")), [(0, 1)], subset=str(_get(row, "subset")))


def _pair_record(group: PreferenceGroup, scores: Scores) -> Record:
    return {"id": group.metadata.get("id"), "subset": group.metadata["subset"], "score_chosen": scores[0], "score_rejected": scores[1]}


def _best_of_4(row: Row) -> PreferenceGroup:
    chosen, rejected = _texts(row, None, "chosen"), _texts(row, None, "rejected")
    pairs = product(range(len(chosen)), range(len(chosen), len(chosen) + len(rejected)))
    return _group(row, _text(row, "prompt"), (*chosen, *rejected), pairs, subset=str(_get(row, "subset")), num_correct=len(chosen))


def _best_of_4_record(group: PreferenceGroup, scores: Scores) -> Record:
    return {**{key: group.metadata.get(key) for key in ("id", "subset", "num_correct")}, "scores": scores}


def _styles(row: Row) -> PreferenceGroup:
    responses = (*_texts(row, 3, "chosen"), *_texts(row, 3, "rejected"))
    return _group(row, _text(row, "prompt"), responses, product(range(3), range(3, 6)), domain=str(_get(row, "domain", "subset")))


def _styles_record(group: PreferenceGroup, scores: Scores) -> Record:
    return {"id": group.metadata.get("id"), "domain": group.metadata["domain"], "score_chosen": scores[:3], "score_rejected": scores[3:]}


def _labelled(row: Row, prompt: Conversation, first: Conversation, second: Conversation, **more: Any) -> PreferenceGroup:
    label = winner(_get(row, "label"), "column `label`")
    if label not in ("1", "2"):
        raise RowError("bad label", f"the label is {row['label']!r}, expected 1 or 2 (A>B or B>A)")
    return _group(row, prompt, (first, second), [(0, 1) if label == "1" else (1, 0)], label=label, **more)


def _both_orders_record(group: PreferenceGroup, scores: Scores) -> Record:
    """A scorer sees one response at a time: it says the same in both orders."""
    meta = group.metadata
    return {
        "id": meta.get("id"),
        "subset": meta["subset"],
        "source": meta["subset"],
        "label": meta["label"],
        "scores_AB": scores,
        "scores_BA": scores[::-1],
        "pointwise": True,
    }


def _judgebench_item(row: Row) -> PreferenceGroup:
    sides = _text(row, "response_A"), _text(row, "response_B")
    return _labelled(row, _text(row, "question"), *sides, id=_get(row, "pair_id", "id"), subset=str(_get(row, "source")))


def _instruction_pair(row: Row) -> PreferenceGroup:
    subset = bench_subset(str(_get(row, "subset", "dataset", "hub_split")))
    if "chosen" in row:
        pair = _group(row, _text(row, "prompt"), (_text(row, "chosen"), _text(row, "rejected")), [(0, 1)], label="1", subset=subset)
        return pair
    sides = _text(row, "output_1", "response1"), _text(row, "output_2", "response2")
    return _labelled(row, _text(row, "input", "instruction", "prompt"), *sides, subset=subset)


def _hhh_item(row: Row) -> PreferenceGroup:
    subset = str(_get(row, "subset", "hub_config"))
    if "targets" not in row:
        return _group(row, _text(row, "prompt"), (_text(row, "chosen"), _text(row, "rejected")), [(0, 1)], subset=subset)
    if not isinstance(row["targets"], Mapping):
        raise RowError("bad label", f"column `targets` holds {row['targets']!r:.40}, expected choices and labels")
    choices, labels = (list(_get(row["targets"], key)) for key in ("choices", "labels"))
    if sorted(labels) != [0, 1]:
        raise RowError("bad label", f"targets.labels is {labels}, expected one 1 and one 0")
    right = labels.index(1)
    return _group(row, _text(row, "input"), (choices[right], choices[1 - right]), [(0, 1)], subset=subset)


def _solutions(row: Row) -> PreferenceGroup:
    prompt = _text(row, "prompt", "problem", "question")
    if "chosen" in row:
        chosen = row["chosen"] if isinstance(row["chosen"], str) else _texts(row, 1, "chosen")[0]
        responses = (chosen, *_texts(row, None, "rejected"))
    else:
        responses = _texts(row, None, "solutions", "solution", "responses")
    if len(responses) < 2:
        raise RowError("too few", f"has {len(responses)} solution; expected the right one and the wrong ones")
    return _group(row, prompt, responses, ((0, k) for k in range(1, len(responses))), id=row.get("id", row.get("unique_id")))


def _scores_record(group: PreferenceGroup, scores: Scores) -> Record:
    return {"id": group.metadata.get("id"), "scores": scores}


def _sampled(row: Row) -> PreferenceGroup:
    correct = [bool(mark) for mark in _get(row, "scores", "correct")]
    if isinstance(row.get("responses"), (list, tuple)):
        responses = _texts(row, len(correct), "responses")
    else:
        responses = tuple(_text(row, f"response_{k + 1}") for k in range(len(correct)))
    pairs = product([k for k, mark in enumerate(correct) if mark], [k for k, mark in enumerate(correct) if not mark])
    subset = str(row.get("subset") or row.get("hub_config") or "all")
    name = f"{row['question_id']}/{row.get('model_name', '')}" if "question_id" in row else row.get("id")
    group = _group(row, _text(row, "prompt"), responses, pairs, id=name, subset=subset, correct=correct)
    return replace(group, ratings=tuple({"correct": float(mark)} for mark in correct))


def _sampled_record(group: PreferenceGroup, scores: Scores) -> Record:
    return {**{key: group.metadata.get(key) for key in ("id", "subset", "correct")}, "scores": scores}


def _human_pair(row: Row) -> PreferenceGroup:
    label = winner(_get(row, "winner", "label"), "column `winner`")
    if label is None:
        raise RowError("bad label", f"the winner is {_get(row, 'winner', 'label')!r}, expected model_a, model_b or tie")
    sides = _text(row, "response_1", "response_a"), _text(row, "response_2", "response_b")
    models = {key: row.get(key) or row.get(f"{key[:5]}_name_{1 if key == 'model_a' else 2}") for key in ("model_a", "model_b")}
    more = {"id": row.get("id", row.get("question_id")), "label": label, **models, "subset": row.get("subset", row.get("language"))}
    if label == "tie":
        return replace(_group(row, _text(row, "prompt"), sides, [], **more), comparisons=(Comparison(0, 1, probability=0.5),))
    return _group(row, _text(row, "prompt"), sides, [(0, 1) if label == "1" else (1, 0)], **more)


def _human_record(group: PreferenceGroup, scores: Scores) -> Record:
    names = {key: group.metadata[key] for key in ("model_a", "model_b") if key in group.metadata}
    return {"id": group.metadata.get("id"), "winner": group.metadata["label"], "score_1": scores[0], "score_2": scores[1], **names}


def _three_votes(row: Row) -> PreferenceGroup:
    sides = _text(row, "response_1", "response1"), _text(row, "response_2", "response2")
    votes = row.get("votes") or [row[f"annotator{k}"] for k in (1, 2, 3) if f"annotator{k}" in row] or [_get(row, "votes", "label")]
    meant = [winner(vote, "column `votes`") for vote in votes]
    if None in meant:
        raise RowError("bad label", f"the votes are {votes}, expected 0 (tie), 1 or 2 of each annotator")
    label = majority(meant)
    group = _group(row, _text(row, "prompt", "instruction"), sides, [], id=row.get("id", row.get("idx")), votes=meant)
    if label is None:
        return group
    comparison = Comparison(0, 1, probability=0.5) if label == "tie" else Comparison(0, 1) if label == "1" else Comparison(1, 0)
    return replace(group, comparisons=(comparison,))


def _three_votes_record(group: PreferenceGroup, scores: Scores) -> Record:
    return {"id": group.metadata.get("id"), "votes": group.metadata["votes"], "scores": scores}


def _twin(row: Row) -> PreferenceGroup:
    subset = str(_get(row, "subset"))
    group = _group(row, _text(row, "prompt"), (_text(row, "original"), _text(row, "perturbed")), [(0, 1)], subset=subset)
    same = subset in TWINS_SAME
    return replace(group, comparisons=(Comparison(0, 1, probability=0.5),)) if same else group


# --- the table ---------------------------------------------------------------------------------------------------------------------------------

PPE_SETS = ("MMLU-Pro", "MATH", "GPQA", "MBPP-Plus", "IFEval")

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "rewardbench",
            "RewardBench",
            ("allenai/reward-bench",),
            "filtered",
            "prompt, chosen, rejected, subset [, id]",
            _pair,
            _pair_record,
            rewardbench,
            "Lambert et al. 2024, arXiv 2403.13787; allenai/reward-bench",
        ),
        Benchmark(
            "rewardbench-prior",
            "RewardBench, prior sets",
            ("allenai/pref-test-sets",),
            "test",
            "prompt, chosen, rejected, subset [, id]",
            _pair,
            _pair_record,
            rewardbench,
            "Lambert et al. 2024, arXiv 2403.13787; allenai/reward-bench",
        ),
        Benchmark(
            "rewardbench2",
            "RewardBench 2",
            ("allenai/reward-bench-2",),
            "test",
            "id, prompt, chosen (list), rejected (list), subset",
            _best_of_4,
            _best_of_4_record,
            rewardbench2,
            "Malik et al. 2025, arXiv 2506.01937; allenai/reward-bench",
        ),
        Benchmark(
            "rm-bench",
            "RM-Bench",
            ("THU-KEG/RM-Bench",),
            "train",
            "id, prompt, chosen [3], rejected [3], domain",
            _styles,
            _styles_record,
            rm_bench,
            "Liu et al. 2024, arXiv 2410.16184; THU-KEG/RM-Bench",
        ),
        Benchmark(
            "judgebench",
            "JudgeBench",
            ("ScalerLab/JudgeBench",),
            "gpt",
            "pair_id, source, question, response_A, response_B, label (A>B or B>A)",
            _judgebench_item,
            _both_orders_record,
            judgebench,
            "Tan et al. 2024, arXiv 2410.12784; ScalerLab/JudgeBench",
            ("order",),
        ),
        Benchmark(
            "llmbar",
            "LLMBar",
            ("princeton-nlp/LLMBar",),
            "*",
            "input, output_1, output_2, label, subset; or prompt, chosen, rejected, subset",
            _instruction_pair,
            _both_orders_record,
            llmbar,
            "Zeng et al. 2023, arXiv 2310.07641; princeton-nlp/LLMBar",
            ("order",),
        ),
        Benchmark(
            "evalbiasbench",
            "EvalBiasBench",
            (),
            "",
            "instruction, response1, response2, label, by subset (biasbench.json of ncsoft/offsetbias); or prompt, chosen, rejected, subset",
            _instruction_pair,
            _both_orders_record,
            evalbiasbench,
            "Park et al. 2024, arXiv 2407.06551; ncsoft/offsetbias",
            ("order",),
        ),
        Benchmark(
            "ppe-preference",
            "PPE, human preference",
            ("lmarena-ai/PPE-Human-Preference-V1",),
            "test",
            "prompt, response_1, response_2, winner [, model_a, model_b]",
            _human_pair,
            _human_record,
            ppe_preference,
            "Frick et al. 2024, arXiv 2410.14872",
        ),
        Benchmark(
            "ppe-correctness",
            "PPE, correctness",
            tuple(f"lmarena-ai/PPE-{name}-Best-of-K" for name in PPE_SETS),
            "train",
            "question_id, model_name, prompt, scores (true or false an answer), response_1 ... response_K or responses",
            _sampled,
            _sampled_record,
            ppe_correctness,
            "Frick et al. 2024, arXiv 2410.14872",
        ),
        Benchmark(
            "rewardmath",
            "RewardMATH",
            (),
            "",
            "prompt (or problem), solutions with the right one first; or chosen and a list of rejected",
            _solutions,
            _scores_record,
            rewardmath,
            "Kim et al. 2024, arXiv 2410.01729; kimsh0507/RewardMATH_official",
        ),
        Benchmark(
            "hhh",
            "HHH alignment",
            tuple(f"HuggingFaceH4/hhh_alignment:{name}" for name in ("harmless", "helpful", "honest", "other")),
            "test",
            "input, targets {choices, labels}, subset; or prompt, chosen, rejected, subset",
            _hhh_item,
            _pair_record,
            hhh,
            "Askell et al. 2021, arXiv 2112.00861",
        ),
        Benchmark(
            "pandalm",
            "PandaLM test set",
            (),
            "",
            "prompt (or instruction), response_1, response_2, votes (or annotator1, annotator2, annotator3: 0 tie, 1, 2)",
            _three_votes,
            _three_votes_record,
            pandalm,
            "Wang et al. 2023, arXiv 2306.05087; WeOpenML/PandaLM",
        ),
        Benchmark(
            "judgement-bias",
            "Counterfactual twins",
            (),
            "",
            "prompt, original, perturbed, subset (factual_error, gender, reference, rich_content)",
            _twin,
            _pair_record,
            judgement_bias,
            "Chen et al. 2024, arXiv 2402.10669; FreedomIntelligence/Humans_LLMs_Judgement_Bias",
        ),
    )
}


def find_benchmark(name: str) -> Benchmark:
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1)
    raise ConfigError(f"no benchmark is called {name!r}" + (f"; did you mean {near[0]}?" if near else "") + f" Benchmarks: {', '.join(BENCHMARKS)}")


def load_items(benchmark: Benchmark, data: str | Path | None = None, *, limit: int | None = None) -> list[PreferenceGroup]:
    """The items of a benchmark from the hub, or from a file with the same columns. Raises DataError with the place of the first row that is not one."""
    if data is None and not benchmark.hub:
        raise ConfigError(f"{benchmark.title} has no data set on the hub; give its file with --data (columns: {benchmark.columns})")
    groups = []
    for location, row in _rows(benchmark, data):
        try:
            group = benchmark.parse(row)
        except RowError as error:
            raise DataError(f"{location}: {error}; {benchmark.title} needs {benchmark.columns}") from error
        except DataError as error:
            raise DataError(f"{location}: {error}") from error
        groups.append(replace(group, metadata={"source": benchmark.name, **group.metadata, "location": location}))
        if limit is not None and len(groups) == limit:
            break
    if not groups:
        raise DataError(f"{data or benchmark.hub[0]}: no rows; expected items of {benchmark.title} ({benchmark.columns})")
    _refuse_duplicates(groups, benchmark)
    return groups


def _rows(benchmark: Benchmark, data: str | Path | None) -> Iterator[tuple[str, Row]]:
    if data is None:
        for name in benchmark.hub:
            hub, _, config = name.partition(":")
            for location, row in read_rows(hub, split=benchmark.split, config=config or None):
                yield location, {"hub_config": config or hub.split("/")[-1].removeprefix("PPE-").removesuffix("-Best-of-K"), **row}
        return
    path = Path(data)
    if path.suffix == ".json" and path.is_file():
        yield from _rows_by_subset(path)
        return
    yield from read_rows(data, split=benchmark.split)


def _rows_by_subset(path: Path) -> Iterator[tuple[str, Row]]:
    """A JSON file: a list of rows, or lists of rows by subset (EvalBiasBench)."""
    content = read_json(path)
    if isinstance(content, Mapping) and content and "data" not in content and all(_is_rows(rows) for rows in content.values()):
        for subset, rows in content.items():
            for number, row in enumerate(rows, 1):
                # ids count within a subset
                yield f"{path.name}, {subset} row {number}", {**row, "subset": subset, "id": f"{subset}-{row['id']}" if "id" in row else None}
        return
    yield from read_rows(path)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: broken JSON at line {error.lineno}: {error.msg}") from error


def _refuse_duplicates(groups: Sequence[PreferenceGroup], benchmark: Benchmark) -> None:
    seen: dict[Any, str] = {}
    for group in groups:
        meta = group.metadata
        key = (meta.get("id"), meta.get("subset"), meta.get("domain"))
        if meta.get("id") is not None and key in seen:
            raise DataError(f"{meta['location']} and {seen[key]} both have the id {meta['id']!r}; an item of {benchmark.title} counts once: remove one of them")
        seen[key] = meta["location"]


# --- from rewards, or recorded scores, to the report ---------------------------------------------------------------------------------------------


def make_records(benchmark: Benchmark, scored: Scored) -> list[Record]:
    """One record an item, from its rewards; None where a response could not be scored."""
    records: list[Record] = []
    for g, group in enumerate(scored.groups):
        scores: Scores = [float(reward) if np.isfinite(reward) else None for reward in scored.of(g)]
        records.append({**benchmark.record(group, scores), "prompt_key": scored.keys[g]})
    return records


def report(benchmark: Benchmark, records: Sequence[Record], *, partial: bool = False, confidence: float = 0.95, order: str | None = None) -> dict[str, Any]:
    """The figures of a benchmark from records, as `results.json` holds them."""
    check_records(records, benchmark.title)
    if order is not None and "order" not in benchmark.options:
        takers = ", ".join(b.name for b in BENCHMARKS.values() if "order" in b.options)
        raise ConfigError(f"{benchmark.title} asks in one order, so there is no order to state; it is for {takers}")
    options = {"order": order} if order is not None else {}
    found = benchmark.protocol(records, partial=partial, confidence=confidence, **options)
    scores = {name: {"value": e.value, "interval": (e.low, e.high) if np.isfinite(e.low) else None, "n": e.n} for name, e in found.scores.items()}
    return {
        "name": benchmark.name,
        "title": benchmark.title,
        "primary": found.primary,
        "scores": scores,
        "matrix": found.matrix._asdict() if found.matrix else None,
        "unscored": found.unscored,
        "items": len(records),
        "source": benchmark.source,
        "note": "; ".join((*found.notes, *([f"{found.unscored} items could not be scored and {found.unscored_as}"] if found.unscored else []))),
    }


RUN_COLUMNS = (
    "labels",
    "scores_AB",
    "scores_BA",
    "winner_order12",
    "winner_order21",
    "scores",
    "score_chosen",
    "score_rejected",
    "decisions",
    "ids",
    "subsets",
)


RUN_KEYS = ("model", "base_llm", "judge", "judge_model", "strategy")
"""Columns that say whose scores these are; the figures of two runs must not be pooled."""


def read_records(path: str | Path, *, where: Mapping[str, str] | None = None) -> list[Record]:
    """Recorded scores or verdicts: JSONL or JSON rows of one item each, or one object with columns of equal length, or a bare matrix of scores.

    A run as columns ({"labels": [...], "winner_order12": [...], ...}) becomes one record an item; plural names lose their s, what is not a column
    goes to every record. A matrix [[...], ...] becomes {"scores": row}. `where` keeps the rows whose columns have these values (`*` stands for
    anything). Raises DataError for
    columns of different length, and for a file that holds the scores of several models or strategies, of which `where` picks none.
    """
    path = Path(path)
    content = read_json(path) if path.suffix == ".json" else [row for _, row in read_rows(path)]
    if isinstance(content, list) and content and all(isinstance(row, (list, tuple)) for row in content):
        return [{"scores": row} for row in content]
    rows = [content] if isinstance(content, Mapping) else content
    if isinstance(content, Mapping) and isinstance(content.get("data"), list):
        rows = content["data"]
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError(f"{path}: holds {type(content).__name__}, expected rows of recorded scores, columns of them, or a matrix")
    kept = [row for row in rows if all(fnmatchcase(str(row.get(key)), value) for key, value in (where or {}).items())]
    if not kept:
        raise DataError(f"{path}: none of its {len(rows)} rows has {', '.join(f'{key}={value}' for key, value in (where or {}).items()) or 'a score'}")
    _check_one_run(kept, path)
    try:
        return [record for row in kept for record in from_columns(row)]
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _check_one_run(rows: Sequence[Row], path: Path) -> None:
    for key in RUN_KEYS:
        found = sorted({str(row[key]) for row in rows if key in row})
        if len(found) > 1:
            shown = ", ".join(found[:6]) + (", ..." if len(found) > 6 else "")
            raise DataError(f"{path}: holds the scores of {len(found)} by `{key}` ({shown}); pick one: --where {key}={found[0]} (where={{...}} in Python)")


def from_columns(row: Row) -> list[Record]:
    """A run as columns to one record an item; a row that is one item stays as it is."""
    columns = {key: value for key, value in row.items() if isinstance(value, (list, tuple)) and key in RUN_COLUMNS}
    # [[x], [y]] are two scores of one number each, not two rows
    nested = {key for key, value in columns.items() if value and isinstance(value[0], (list, tuple)) and len(value[0]) > 1}
    plural = {"labels", "ids", "subsets"} & columns.keys()
    many = bool(plural or nested & {"scores", "scores_AB", "scores_BA", "score_chosen", "score_rejected", "decisions"})
    if not many:
        return [row]
    sizes = {key: len(value) for key, value in columns.items()}
    if len(set(sizes.values())) > 1:
        raise DataError("columns of a run differ in length: " + ", ".join(f"{key} {size}" for key, size in sizes.items()))
    size = next(iter(sizes.values()))
    # a list of the same length under another name is a column too; anything else belongs to the run
    columns |= {key: value for key, value in row.items() if isinstance(value, (list, tuple)) and len(value) == size}
    singular = {"labels": "label", "ids": "id", "subsets": "subset", "sources": "source", "domains": "domain", "pair_ids": "pair_id"}
    shared = {key: value for key, value in row.items() if key not in columns}
    return [{**shared, **{singular.get(key, key): value[i] for key, value in columns.items()}} for i in range(size)]
