"""Data of a run: memory, mapped files and streams give the same training rows; weights hold, and encoding is done once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from tests.conftest import chatml_tokenizer
from transformers import AutoModel

from palate.cli.main import main
from palate.data.loading import picked
from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import Encoder
from palate.errors import DataError
from palate.training.data import drawn, load_data, mapped
from palate.training.settings import RunSettings
from palate.training.supervision import plan


def settings(*sources: Any, **data: Any) -> RunSettings:
    loss = data.pop("loss", {})
    return RunSettings.model_validate(
        {"model": {"name_or_path": "m"}, "data": {"train": list(sources), **data}, "loss": loss, "training": {"output_dir": "o", "max_steps": 3}}
    )


def encoder() -> Encoder:
    return Encoder(prepare_tokenizer(chatml_tokenizer()), max_length=128)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_mapped_rows_are_the_rows_in_memory(write_jsonl: Any, pairs: list[dict]) -> None:
    path = str(write_jsonl(pairs))
    run = settings(path, mapped=True, num_proc=2)
    found, report = mapped(run, encoder(), plan(run.loss))
    groups = load_data(settings(path)).train
    assert groups is not None
    expected = [list(map(list, encoder().encode(group.exchanges()))) for group in groups]
    assert found["token_ids"] == expected and report.kept["prefs.jsonl"] == len(pairs) and found["group"] == list(range(len(pairs)))


def test_encoding_is_done_once(write_jsonl: Any, pairs: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run finds the first one's files; another loss or other rows do not."""
    calls: Counter[str] = Counter()
    encode = Encoder.encode
    monkeypatch.setattr(Encoder, "encode", lambda self, exchanges: (calls.update(["now"]), encode(self, exchanges))[1])
    path = str(write_jsonl(pairs))
    run = settings(path, mapped=True)
    first, report = mapped(run, encoder(), plan(run.loss))
    done = calls["now"]
    again, second = mapped(run, encoder(), plan(run.loss))
    assert done > 0 and calls["now"] == done and again["token_ids"] == first["token_ids"]
    assert second.as_dict() == report.as_dict()  # what was dropped is known without encoding again
    other = settings(path, mapped=True, loss={"type": "plackett_luce"})
    assert "rank" in mapped(other, encoder(), plan(other.loss))[0].column_names and calls["now"] > done


def test_weights_and_caps_of_mapped_sources(write_jsonl: Any, pairs: list[dict]) -> None:
    a, b = str(write_jsonl(pairs, "a.jsonl")), str(write_jsonl([{**row, "prompt": "other"} for row in pairs], "b.jsonl"))
    run = settings({"path": a, "weight": 2.5}, {"path": b, "cap": 5}, mapped=True)
    found, report = mapped(run, encoder(), plan(run.loss))
    assert len(found) == 30 + 5 and len(set(found["group"])) == 35 and report.kept == {"a.jsonl": 12, "b.jsonl": 12}


@pytest.mark.parametrize(("weight", "cap", "count"), [(1, None, 10), (0.5, None, 5), (2, None, 20), (2.3, None, 23), (1, 4, 4), (0.25, 2, 2)])
def test_picked(weight: float, cap: int | None, count: int) -> None:
    chosen = picked(10, weight, cap, 0)
    assert len(chosen) == count and set(chosen) <= set(range(10)) and picked(10, weight, cap, 0) == chosen
    assert max(Counter(chosen).values()) <= -(-weight // 1)


def test_streams_draw_by_weight(write_jsonl: Any, pairs: list[dict]) -> None:
    """Three to one, until both have ended once; the smaller share is begun again as often as needed."""
    many = [{**row, "prompt": f"many {i} {row['prompt']}"} for i in range(25) for row in pairs]
    few = [{**row, "prompt": f"few {row['prompt']}"} for row in pairs]
    run = settings({"path": str(write_jsonl(many, "a.jsonl")), "weight": 3}, {"path": str(write_jsonl(few, "b.jsonl"))}, streaming=True)
    prompts = [str(group.prompt) for group in drawn(run)]
    from_many = sum(prompt.startswith("many") for prompt in prompts)
    assert from_many == 300 and 60 < len(prompts) - from_many < 145  # a quarter of all, plus or minus four standard deviations
    assert prompts == [str(group.prompt) for group in drawn(run)]


def test_a_stream_of_one_source_is_one_pass(write_jsonl: Any, pairs: list[dict]) -> None:
    assert len(list(drawn(settings(str(write_jsonl(pairs)), streaming=True)))) == len(pairs)


def test_mapped_data_say_what_is_wrong(tmp_path: Path, write_jsonl: Any, pairs: list[dict]) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{broken\n')
    for path, words in ((broken, "cannot be read for data.mapped"), (write_jsonl([*pairs, {**pairs[0], "rejected": ""}]), "1 of 13 rows cannot be used")):
        run = settings(str(path), mapped=True)
        with pytest.raises(DataError, match=words):
            mapped(run, encoder(), plan(run.loss))


@pytest.mark.parametrize("loss", [[], ["--loss.text", "dpo"]], ids=["pairs", "dpo"])
def test_a_mapped_run(tmp_path: Path, base_models: dict[str, Path], write_jsonl: Any, pairs: list[dict], loss: list[str]) -> None:
    """The command: the weights are those of the run in memory."""
    if loss:  # needs a language-model head, here one that is tied
        model = AutoModel.from_pretrained(base_models["qwen3"])
        model.config.tie_word_embeddings = True
        model.save_pretrained(tmp_path / "tied")
        chatml_tokenizer().save_pretrained(tmp_path / "tied")
        base_models = {"qwen3": tmp_path / "tied"}
    data = str(write_jsonl(pairs))
    flags = ["--model.name_or_path", str(base_models["qwen3"]), "--data.train", data, "--training.max_steps", "3", "--training.use_cpu", "true"]
    flags += ["--training.report_to", "none", "--training.save_strategy", "no"]
    for name in ("memory", "mapped"):
        extra = ["--data.mapped", "true"] if name == "mapped" else []
        assert main(["train", *flags, *extra, *loss, "--training.output_dir", str(tmp_path / name)]) == 0
    assert (tmp_path / "memory" / "model.safetensors").read_bytes() == (tmp_path / "mapped" / "model.safetensors").read_bytes()


def test_a_stream_has_no_references(base_models: dict[str, Path], write_jsonl: Any, pairs: list[dict], tmp_path: Path) -> None:
    flags = ["--model.name_or_path", str(base_models["qwen3"]), "--data.train", str(write_jsonl(pairs)), "--training.max_steps", "3"]
    assert main(["train", *flags, "--data.streaming", "--loss.text", "dpo", "--training.output_dir", str(tmp_path / "o"), "--training.use_cpu", "true"]) in (
        2,
        4,
    )
