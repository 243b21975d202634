"""The label file, what annotators agree on, and labels taken to other tools."""

from __future__ import annotations

import json
import threading
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.explorer.sites import pairs_of

from palate.data.loading import load_groups
from palate.errors import DataError, StorageError
from palate.explorer import agreement, exports
from palate.explorer.labels import Label, LabelFile, annotator_name, choice_of, left_side, verdict_of
from palate.explorer.pairs import Pairs
from palate.stats.agreement import cohen_kappa


def label(pair: str, annotator: str, verdict: str, *, at: int = 0) -> Label:
    return Label(pair, annotator, f"2026-03-01T12:00:{at:02d}+00:00", verdict, left_side(pair, annotator), True, "rows row 1")


# --- the file -------------------------------------------------------------------------------------------------------------------------------------


def test_labels_are_lines_and_come_back(tmp_path: Path) -> None:
    file = LabelFile(tmp_path / "sub" / "labels.jsonl")
    file.add(label("0a", "ada", "chosen"))
    file.add(label("0a", "bob", "tie"))
    file.add(label("0a", "ada", "rejected"))
    assert [json.loads(line)["verdict"] for line in file.path.read_text().splitlines()] == ["chosen", "tie", "rejected"], "nothing is written over"
    again = LabelFile(file.path)
    assert again.current == file.current and {one.annotator for one in again.current} == {"ada", "bob"}
    assert again.of("0a", "ada") == label("0a", "ada", "rejected"), "the last decision holds"
    assert len(again.on("0a")) == 2 and again.of("0b", "ada") is None


def test_undo_takes_back_one_decision_of_its_annotator(tmp_path: Path) -> None:
    file = LabelFile(tmp_path / "labels.jsonl")
    for one in (label("0a", "ada", "chosen"), label("0b", "ada", "tie"), label("0a", "bob", "tie"), label("0a", "ada", "rejected")):
        file.add(one)
    assert file.undo("ada") == label("0a", "ada", "rejected") and file.of("0a", "ada") == label("0a", "ada", "chosen"), "the one before holds again"
    assert file.undo("ada") == label("0b", "ada", "tie") and file.of("0b", "ada") is None
    assert file.undo("ada") == label("0a", "ada", "chosen") and file.undo("ada") is None
    assert LabelFile(file.path).current == file.current == [label("0a", "bob", "tie")], "others' decisions stay, and a reload sees the same"


def test_what_another_server_appends_is_seen(tmp_path: Path) -> None:
    first = LabelFile(tmp_path / "labels.jsonl")
    second = LabelFile(tmp_path / "labels.jsonl")
    first.add(label("0a", "ada", "chosen"))
    second.add(label("0b", "bob", "tie"))
    first.refresh()
    assert first.current == second.current and len(first.current) == 2
    version = first.version
    first.refresh()
    assert first.version == version, "nothing new is no new version"


def test_two_servers_take_one_decision_back_once(tmp_path: Path) -> None:
    """A second undo of one label would be a line that no server reads. The thread waits at the lock or comes after it: both end alike."""
    first, second = (LabelFile(tmp_path / "labels.jsonl") for _ in range(2))
    first.add(label("0a", "ada", "chosen"))
    second.refresh()
    undone: list[Label | None] = []
    other = threading.Thread(target=lambda: undone.append(first.undo("ada")))
    with second._alone() as file:
        other.start()
        second._append(file, {"pair": "0a", "annotator": "ada", "time": "t", "undo": True})
    other.join()
    assert undone == [None] and LabelFile(first.path).current == [] and len(first.path.read_text().splitlines()) == 2


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    """Two servers, two people each, who label and undo at the same time: every line stands whole, and each file reads the same."""
    servers = [LabelFile(tmp_path / "labels.jsonl") for _ in range(2)]

    def work(server: LabelFile, name: str) -> None:
        for i in range(15):
            server.add(label(f"{i:x}", name, "chosen"))
            if i % 3 == 0:
                assert server.undo(name) == label(f"{i:x}", name, "chosen")

    people = [threading.Thread(target=work, args=(server, f"{k}-{name}")) for k, server in enumerate(servers) for name in ("ada", "bob")]
    for one in people:
        one.start()
    for one in people:
        one.join()
    for server in servers:
        server.refresh()
    kept = {(f"{i:x}", one) for i in range(15) if i % 3 for one in ("0-ada", "0-bob", "1-ada", "1-bob")}
    assert all({(one.pair, one.annotator) for one in file.current} == kept for file in (*servers, LabelFile(tmp_path / "labels.jsonl")))
    assert len((tmp_path / "labels.jsonl").read_text().splitlines()) == 4 * (15 + 5)


class Full(FileIO):
    """A file on a disk that has room for twenty bytes more."""

    def write(self, data: Any) -> int:
        return super().write(data[:20])


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    file = LabelFile(tmp_path / "labels.jsonl")
    file.add(label("0a", "ada", "chosen"))
    size = file.path.stat().st_size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode, **_: Full(path, mode))
        with pytest.raises(StorageError, match="room for a part of it"):
            file.add(label("0b", "ada", "chosen"))
    assert file.path.stat().st_size == size and file.of("0b", "ada") is None
    file.add(label("0b", "ada", "tie"))
    assert [one.verdict for one in LabelFile(file.path).current] == ["chosen", "tie"], "labelling goes on once there is space again"


def test_half_a_line_is_waited_for_but_never_written_onto(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    LabelFile(path).add(label("0a", "ada", "chosen"))
    with path.open("a") as file:
        file.write('{"pair": "0b", "annot')
    read = LabelFile(path)
    assert len(read.current) == 1
    with pytest.raises(DataError, match="half a line"):
        read.add(label("0c", "ada", "tie"))
    with path.open("a") as file:
        file.write('ator": "bob", "time": "t", "verdict": "tie", "left": "chosen", "blind": false}\n')
    read.add(label("0c", "ada", "tie"))
    assert [one.pair for one in LabelFile(path).current] == ["0a", "0b", "0c"]


BROKEN = (
    "nonsense",
    "[]",
    '{"pair": "0a"}',
    '{"pair": "0a", "annotator": "ada", "undo": true}',
    '{"pair": "0a", "annotator": "ada", "time": "t", "verdict": "maybe", "left": "chosen", "blind": true}',
    '{"pair": "no hex", "annotator": "ada", "time": "t", "verdict": "tie", "left": "chosen", "blind": true}',
    '{"pair": "10000000000000000", "annotator": "ada", "time": "t", "verdict": "tie", "left": "chosen", "blind": true}',
)


@pytest.mark.parametrize("line", BROKEN)
def test_a_line_that_is_no_label_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "labels.jsonl"
    LabelFile(path).add(label("0a", "bob", "chosen"))
    size = path.stat().st_size
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=f"from byte {size}"):
        LabelFile(path)


def test_a_file_that_shrank_is_refused(tmp_path: Path) -> None:
    file = LabelFile(tmp_path / "labels.jsonl")
    file.add(label("0a", "ada", "chosen"))
    file.path.write_text("")
    with pytest.raises(DataError, match="only ever grows"):
        file.refresh()


# --- sides ----------------------------------------------------------------------------------------------------------------------------------------


def test_sides_are_a_fair_coin_by_pair_and_annotator() -> None:
    pairs = [f"{i:016x}" for i in range(2000)]
    ada, bob = ([left_side(pair, name) == "chosen" for pair in pairs] for name in ("ada", "bob"))
    assert ada == [left_side(pair, "ada") == "chosen" for pair in pairs], "the same whenever the page is loaded"
    assert 0.46 < np.mean(ada) < 0.54 and 0.46 < np.mean(np.array(ada) == np.array(bob)) < 0.54, "and another one for another annotator"


def test_choices_become_verdicts_on_the_data_and_back() -> None:
    assert (verdict_of("a", "chosen"), verdict_of("b", "chosen"), verdict_of("a", "rejected"), verdict_of("b", "rejected")) == (
        "chosen",
        "rejected",
        "rejected",
        "chosen",
    )
    for left in ("chosen", "rejected"):
        for choice in ("a", "b", "tie", "both_bad", "skip"):
            assert choice_of(verdict_of(choice, left), left) == choice
    with pytest.raises(DataError, match="choice"):
        verdict_of("chosen", "chosen")


def test_names() -> None:
    assert annotator_name("  Ada   Lovelace ") == "Ada Lovelace"
    for name in ("", "   ", "x" * 41, "a\x00b"):
        with pytest.raises(DataError, match="annotator"):
            annotator_name(name)


# --- agreement ------------------------------------------------------------------------------------------------------------------------------------


def many(n: int) -> Pairs:
    return pairs_of([{"prompt": f"p {i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)], [1.0 if i % 4 else -1.0 for i in range(n)])


def test_kappa_does_not_depend_on_which_side_the_data_call_chosen() -> None:
    """Two annotators who always agree with the data: as chosen/rejected both always say "chosen", and kappa would be 0 / 0; coded by identity it is 1."""
    pairs = many(40)
    identities = [pairs.identity(row) for row in range(40)]
    labels = [label(pair, name, "chosen") for name in ("ada", "bob") for pair in identities]
    found = agreement.summarise(labels, pairs)
    assert {agreement.code_of(pair, "chosen") for pair in identities} == {"first", "second"}
    assert [(row.a, row.b, row.n, row.same, row.kappa) for row in found.pairs[:1]] == [("ada", "bob", 40, 1.0, 1.0)]
    assert found.fleiss == (1.0, 40, 2) and found.alpha == (1.0, 40)


def test_agreement_by_hand() -> None:
    """ada: chosen on all of 8; bob: rejected on the first two, skips the third; cy: two pairs. The model is against every fourth row."""
    pairs = many(8)
    identities = [pairs.identity(row) for row in range(8)]
    labels = [label(pair, "ada", "chosen") for pair in identities]
    labels += [label(pair, "bob", "rejected" if row < 2 else "skip" if row == 2 else "chosen") for row, pair in enumerate(identities)]
    labels += [label(identities[0], "cy", "tie"), label(identities[1], "cy", "both_bad")]
    found = agreement.summarise(labels, pairs)
    ada, bob, cy = found.raters
    assert (ada.decided, ada.with_data, bob.decided, bob.with_data, bob.verdicts["skip"]) == (8, 8, 7, 5, 1)
    assert (cy.decided, cy.with_data, cy.verdicts) == (2, 0, {"tie": 1, "both_bad": 1})
    rows = {(row.a, row.b): row for row in found.pairs}
    assert rows["ada", "bob"].n == 7 and rows["ada", "bob"].same == pytest.approx(5 / 7), "a skipped pair is not compared"
    both = [identity for row, identity in enumerate(identities) if row != 2]
    codes = [
        [agreement.code_of(pair, verdict) for pair, verdict in zip(both, verdicts, strict=True)]
        for verdicts in (["chosen"] * 7, ["rejected"] * 2 + ["chosen"] * 5)
    ]
    assert rows["ada", "bob"].kappa == pytest.approx(cohen_kappa(*codes))
    assert rows["ada", "the data"].same == 1.0 and rows["ada", "the model"].same == 6 / 8 and rows["bob", "the model"].same == 5 / 7
    assert found.fleiss is not None and found.fleiss[1:] == (2, 3), "Fleiss: over the two pairs that all three decided"
    assert found.alpha is not None and found.alpha[1] == 7


def test_a_tie_of_the_data_is_agreed_with_by_a_tie() -> None:
    pairs = pairs_of(
        [{"prompt": "p", "response_1": "x", "response_2": "y", "label": 0}, {"prompt": "p", "response_1": "x", "response_2": "z", "label": 1}], [0.0, 1.0]
    )
    labels = [label(pairs.identity(0), "ada", "tie"), label(pairs.identity(1), "ada", "chosen"), label(pairs.identity(0), "bob", "chosen")]
    ada, bob = agreement.summarise(labels, pairs).raters
    assert (ada.compared, ada.with_data, bob.compared, bob.with_data) == (2, 2, 1, 0)


def test_labels_of_other_data_are_no_mistake() -> None:
    found = agreement.summarise([label("00ff", "ada", "chosen")], many(4))
    assert (
        (found.raters[0].decided, found.raters[0].compared, found.raters[0].interval) == (1, 0, None)
        and not found.pairs
        and found.fleiss is None
        and found.alpha is None
    )


# --- exports --------------------------------------------------------------------------------------------------------------------------------------


def test_exported_preferences_are_read_by_our_loader(tmp_path: Path) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": f"ask {i}"}], "chosen": f"better {i}", "rejected": f"worse {i}", "domain": "d", "id": f"row-{i}"}
        for i in range(9)
    ]
    pairs = pairs_of(rows, [1.0] * 9)
    said = ["chosen", "rejected", "tie", "both_bad", "skip", "chosen", "rejected", "chosen"]
    labels = [label(pairs.identity(row), "ada", verdict) for row, verdict in enumerate(said)] + [label(pairs.identity(5), "bob", "rejected")]
    path = tmp_path / "out.jsonl"
    path.write_bytes(exports.preference_rows(pairs, labels).encode())
    groups = load_groups(path).groups
    assert [group.metadata["id"] for group in groups] == [f"row-{i}" for i in (0, 1, 2, 3, 5, 6, 7)], "skipped and unlabelled pairs stay out"
    orders = set()
    for group, row in zip(groups, (0, 1, 2, 3, 5, 6, 7), strict=True):
        (comparison,) = group.comparisons
        assert group.prompt == tuple(rows[row]["prompt"])
        winner = group.responses[comparison.chosen][0]["content"].split()[0]  # type: ignore[index]
        orders.add(group.responses[0][0]["content"].split()[0])  # type: ignore[index]
        if row in (2, 3, 5):  # a tie, both bad, one vote each way
            assert comparison.probability == 0.5
        else:
            assert comparison.probability == 1.0 and winner == ("better" if said[row] == "chosen" else "worse")
    assert orders == {"better", "worse"}, "which side comes first does not tell the data's label"


def test_exports_for_other_tools_say_the_same() -> None:
    pairs = pairs_of()
    labels = [label(pairs.identity(0), "ada", "rejected"), label(pairs.identity(0), "bob", "tie"), label("00ff", "ada", "chosen")]
    records = json.loads(exports.argilla_records(pairs, labels))
    assert [(one["annotator"], one["preference"]) for one in records][1] == ("bob", "tie") and len({one["id"] for one in records}) == 2
    (ada,) = (one for one in records if one["annotator"] == "ada")
    assert ada[f"response_{ada['preference']}"] == "A stone, I think it is a fruit." and ada["prompt"] == "name a fruit"
    (task,) = json.loads(exports.label_studio_tasks(pairs, labels))
    assert [one["completed_by"]["email"] for one in task["annotations"]] == ["ada", "bob"]
    choice = task["annotations"][0]["result"][0]["value"]["choices"][0]
    assert task["data"][{"a": "text1", "b": "text2"}[choice]] == "A stone, I think it is a fruit."


def test_token_ids_are_not_exported() -> None:
    pairs = pairs_of([{"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4]}], [1.0])
    with pytest.raises(DataError, match="token ids"):
        exports.preference_rows(pairs, [label(pairs.identity(0), "ada", "chosen")])
