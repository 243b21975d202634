"""Files to groups: formats of files, numbered errors, mixing, splitting by prompt."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pytest

from palate.data.loading import fingerprint, load_groups, mix, prompt_key, split_by_prompt
from palate.errors import DataError

ROWS = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(6)]


def texts(groups) -> list[tuple]:
    return [(g.prompt, *g.responses) for g in groups]


def test_the_same_rows_from_every_kind_of_file(tmp_path: Path, write_jsonl) -> None:
    expected = texts(load_groups(ROWS).groups)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\n" + "".join(f"{r['prompt']},{r['chosen']},{r['rejected']}\n" for r in ROWS))
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in ROWS)
    table = datasets.Dataset.from_list(ROWS)
    table.to_parquet(tmp_path / "a.parquet")
    sources = [write_jsonl(ROWS), *(tmp_path / f"a.{s}" for s in ("json", "csv", "jsonl.gz", "parquet")), table, table.to_iterable_dataset()]
    for source in sources:
        assert texts(load_groups(source).groups) == expected, source


def test_a_folder_gives_the_files_of_the_split(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name, rows in (("train.jsonl", ROWS[:4]), ("test.jsonl", ROWS[4:])):
        (tmp_path / "set" / name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert len(load_groups(tmp_path / "set", split="train").groups) == 4
    assert len(load_groups(tmp_path / "set", split="test").groups) == 2


def test_split_names_of_a_folder_are_exact(tmp_path: Path) -> None:
    """UltraFeedback's folder: train_sft is not train_prefs, and a split that is not there is an error, never everything."""
    for name in ("train_sft", "train_prefs-00000-of-00001", "test_prefs"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({**r, "id": name}) + "\n" for r in ROWS))
    groups = load_groups(tmp_path, split="train_prefs").groups
    assert {g.metadata["id"] for g in groups} == {"train_prefs-00000-of-00001"}
    with pytest.raises(DataError, match="no file of split `test`; the files name the splits test_prefs, train_prefs, train_sft"):
        load_groups(tmp_path, split="test")


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("\ufeffprompt,chosen,rejected\np,good one,bad one\n", encoding="utf-8")
    assert load_groups(tmp_path / "x.csv").groups[0].prompt == "p"


def test_zero_based_labels_are_noticed() -> None:
    rows = [{"prompt": f"p{i}", "response_1": "a", "response_2": "b", "label": i % 2} for i in range(40)]
    with pytest.raises(DataError, match="labels seem to count from 0"):
        load_groups(rows)


def test_broken_containers(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match="not a whole gzip file"):
        load_groups(tmp_path / "x.jsonl.gz")
    (tmp_path / "x.csv").write_bytes("prompt,chosen,rejected\np,caf\xe9,b\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        load_groups(tmp_path / "x.csv")


def test_a_missing_file_names_its_neighbours(tmp_path: Path, write_jsonl) -> None:
    write_jsonl(ROWS, "prefs.jsonl")
    with pytest.raises(DataError, match=r"prefz.jsonl: no such file.*did you mean prefs.jsonl"):
        load_groups(tmp_path / "prefz.jsonl")


def test_bad_rows_are_counted_by_kind_and_located(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
        '{"prompt": "p", "chos\n'
        '{"prompt": "p", "chosen": "a", "rejected": "a"}\n'
        "\n"
        '{"prompt": "p", "chosen": "", "rejected": "a"}\n'
    )
    with pytest.raises(DataError) as caught:
        load_groups(path)
    message = str(caught.value)
    assert "3 of 4 rows cannot be used" in message
    assert "x.jsonl line 2: broken line" in message and "x.jsonl line 3: identical sides" in message and "x.jsonl line 5: empty side" in message
    loaded = load_groups(path, on_bad_row="drop")
    assert len(loaded.groups) == 1 and dict(loaded.reports[0].bad) == {"broken line": 1, "identical sides": 1, "empty side": 1}


def test_nothing_usable_is_an_error_even_when_dropping(write_jsonl) -> None:
    with pytest.raises(DataError, match="none of its 1 rows"):
        load_groups(write_jsonl([{"prompt": "p", "chosen": "a", "rejected": "a"}]), on_bad_row="drop")


def test_missing_columns_name_the_file_and_near_names(write_jsonl) -> None:
    with pytest.raises(DataError, match=r"prefs.jsonl line 1: no known layout.*`rejected` by `rejeted`"):
        load_groups(write_jsonl([{"prompt": "p", "chosen": "a", "rejeted": "b"}]))


def test_columns_can_be_mapped(write_jsonl) -> None:
    path = write_jsonl([{"q": "p", "better": "a", "worse": "b"}])
    group = load_groups(path, columns={"prompt": "q", "chosen": "better", "rejected": "worse"}).groups[0]
    assert (group.prompt, *group.responses) == ("p", "a", "b")
    with pytest.raises(DataError, match="`beter`, which is not there.*nearest: better"):
        load_groups(path, columns={"prompt": "q", "chosen": "beter", "rejected": "worse"})


def test_not_utf8_and_broken_json(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        load_groups(tmp_path / "x.jsonl")
    (tmp_path / "x.json").write_text('[{"a": 1},\n {"b": ]')
    with pytest.raises(DataError, match="broken JSON at line 2"):
        load_groups(tmp_path / "x.json")
    (tmp_path / "x.parquet").write_bytes(b"no")
    with pytest.raises(DataError, match="not a Parquet file"):
        load_groups(tmp_path / "x.parquet")


def test_mixing_weights_and_caps() -> None:
    groups = load_groups(ROWS).groups
    assert len(mix(groups, weight=2, cap=None, seed=0)) == 12
    half = mix(groups, weight=0.5, cap=None, seed=0)
    assert len(half) == 3 and texts(half) == texts(mix(groups, weight=0.5, cap=None, seed=0))
    assert len(mix(groups, weight=2.5, cap=10, seed=0)) == 10
    assert len({id(g) for g in mix(groups, weight=1, cap=4, seed=1)}) == 4


def test_no_prompt_stands_on_both_sides() -> None:
    rows = [{"prompt": f"Prompt  {i % 7}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(70)]
    train, held = split_by_prompt(load_groups(rows).groups, fraction=0.2, seed=3)
    assert len(train) + len(held) == 70 and len(held) in (10, 20)
    assert not {prompt_key(g.prompt) for g in train} & {prompt_key(g.prompt) for g in held}
    assert prompt_key("Prompt  1") == prompt_key("prompt 1")
    with pytest.raises(DataError, match="only 1 different prompts"):
        split_by_prompt(load_groups([{**r, "prompt": "p"} for r in rows]).groups, fraction=0.1, seed=0)


def test_fingerprint_sees_labels_and_order() -> None:
    groups = load_groups(ROWS).groups
    swapped = load_groups([{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in ROWS]).groups
    assert fingerprint(groups) == fingerprint(load_groups(ROWS).groups)
    assert len({fingerprint(groups), fingerprint(swapped), fingerprint(groups[::-1])}) == 3
