"""The language-model head beside the reward head: transformers' own log-probabilities, block by block, and nothing of it in a checkpoint."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import DECODER
from torch import Tensor, nn
from torch.nn.functional import log_softmax
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from palate.data.packing import packed_row
from palate.errors import ModelError
from palate.models import text_head
from palate.models.engine import choose_packing
from palate.models.reward_model import load_pretrained
from palate.models.text_head import IGNORED, TextHead, attach_text_head

VOCABULARY: dict[str, Any] = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {**DECODER, "head_dim": 8}),
    "llama": (LlamaForCausalLM, LlamaConfig, DECODER),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config, {**DECODER, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "phi": (PhiForCausalLM, PhiConfig, {**DECODER, "num_key_value_heads": 4}),
    "gptj": (GPTJForCausalLM, GPTJConfig, {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "rotary_dim": 8}),
}


def saved(folder: Path, kind: str = "qwen3", *, tied: bool = True, **options: Any) -> Path:
    """A tiny language model whose head is its input embedding, or (untied) far from it."""
    model_class, config_class, sizes = FAMILIES[kind]
    torch.manual_seed(0)
    model = model_class(config_class(**{**VOCABULARY, **sizes, "tie_word_embeddings": tied, **options}))
    with torch.no_grad():  # logits that differ by more than rounding
        model.get_output_embeddings().weight.mul_(10)
    model.save_pretrained(folder)
    return folder


def with_head(folder: Path) -> Any:
    model = load_pretrained(str(folder))
    attach_text_head(model, str(folder))
    return model.eval()


GROUPS = [[[5, 6, 7, 8, 2], [5, 6, 9, 2]], [[11, 12, 2]]]
SEQUENCES = [ids for group in GROUPS for ids in group]
PREFIXES = [2, 0]


def reads() -> dict[str, Tensor]:
    """Every token of every sequence, and the one that follows it (nothing follows the last)."""
    return {
        "read_row": torch.tensor([n for n, ids in enumerate(SEQUENCES) for _ in ids]),
        "read_position": torch.tensor([t for ids in SEQUENCES for t in range(len(ids))]),
        "next_token": torch.tensor([token for ids in SEQUENCES for token in (*ids[1:], IGNORED)]),
    }


def padded() -> dict[str, Tensor]:
    length = max(map(len, SEQUENCES))
    ids = torch.tensor([s + [0] * (length - len(s)) for s in SEQUENCES])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in SEQUENCES])}


def expected(folder: Path) -> Tensor:
    """log P(next token) of each sequence by transformers' own model, one sequence at a time; 0 at its last token."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for ids in SEQUENCES:
            scores = log_softmax(model(input_ids=torch.tensor([ids])).logits[0], dim=-1)
            found += [*(scores[t, token] for t, token in enumerate(ids[1:])), torch.tensor(0.0)]
    return torch.stack(found)


@pytest.mark.parametrize("blocks", [1024, 5, 1])
@pytest.mark.parametrize(("kind", "tied"), [("qwen3", True), ("qwen3", False), ("llama", True), ("llama", False), ("gpt2", True)])
def test_log_probabilities_are_those_of_the_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tied: bool, blocks: int) -> None:
    """Padded rows and packed ones; in one block, in blocks of five and of one token."""
    folder = saved(tmp_path, kind, tied=tied)
    monkeypatch.setattr(text_head, "TOKENS_AT_A_TIME", blocks)
    model, truth = with_head(folder), expected(folder)
    assert truth.min() < -6, "the test has logits that differ"
    with torch.no_grad():
        output = model(**padded(), **reads())
        plain = model(**padded(), read_row=reads()["read_row"], read_position=reads()["read_position"])
        choose_packing(model)
        packed = model(**packed_row(GROUPS, PREFIXES), **reads())
    torch.testing.assert_close(output.text, truth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.text, truth, atol=1e-5, rtol=1e-5)
    assert output.text.dtype == torch.float32 and (output.text[reads()["next_token"] == IGNORED] == 0).all()
    assert plain.text is None
    torch.testing.assert_close(plain.logits, output.logits, atol=0, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_whole_vocabulary_at_once(monkeypatch: pytest.MonkeyPatch, tied: bool) -> None:
    """23 tokens in blocks of four: into the hidden states always; into the embedding where the head is tied to it, never into a head of its own."""
    monkeypatch.setattr(text_head, "TOKENS_AT_A_TIME", 4)
    torch.manual_seed(0)
    embedding = nn.Embedding(50, 8)
    head = TextHead(None, embedding) if tied else TextHead(embedding.weight.detach().clone(), None)
    hidden = torch.randn(23, 8, requires_grad=True)
    token = torch.randint(0, 50, (23,))
    token[[0, 7, 22]] = IGNORED
    pull = torch.linspace(-1, 2, 23)
    found = head(hidden, token)
    (found * pull).sum().backward()
    got, of_embedding = hidden.grad, embedding.weight.grad

    again, weight = hidden.detach().requires_grad_(), embedding.weight.detach().requires_grad_()
    scores = log_softmax(again @ weight.T, dim=-1)
    values = torch.where(token == IGNORED, 0.0, scores.gather(1, token.clamp(min=0)[:, None])[:, 0])
    (values * pull).sum().backward()
    torch.testing.assert_close(found, values, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(got, again.grad, atol=1e-6, rtol=1e-5)
    assert (got[[0, 7, 22]] == 0).all() and got.abs().max() > 0.1  # type: ignore[index]
    if tied:
        torch.testing.assert_close(of_embedding, weight.grad, atol=1e-6, rtol=1e-5)
    else:
        assert of_embedding is None and not list(head.parameters())


def test_nothing_to_predict_is_zero_with_a_zero_gradient() -> None:
    """A part whose responses are all ignored must not make the step NaN."""
    hidden = torch.randn(3, 8, requires_grad=True)
    found = TextHead(torch.randn(20, 8), None)(hidden, torch.full((3,), IGNORED))
    found.sum().backward()
    assert found.tolist() == [0, 0, 0] and (hidden.grad == 0).all()


def test_a_16_bit_backbone_gets_log_probabilities_in_float32() -> None:
    torch.manual_seed(0)
    hidden, weight, token = torch.randn(6, 32), torch.randn(20, 32) * 0.1, torch.arange(6)
    exact = TextHead(weight, None)(hidden, token)
    found = TextHead(weight, None)(hidden.bfloat16(), token)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_moves_with_the_embedding_and_another_stays(tmp_path: Path, tied: bool) -> None:
    model = with_head(saved(tmp_path, tied=tied))
    hidden, token = torch.randn(2, 32), torch.tensor([3, 4])
    before = model.text_head(hidden, token)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(-1)
    assert torch.equal(model.text_head(hidden, token), before) != tied


@pytest.mark.parametrize("tied", [True, False])
def test_nothing_of_it_is_saved_or_trained(tmp_path: Path, tied: bool) -> None:
    folder = saved(tmp_path / "base", tied=tied)
    plain, model = load_pretrained(str(folder)), with_head(folder)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    model.save_pretrained(tmp_path / "saved")
    again = load_pretrained(str(tmp_path / "saved"))
    torch.testing.assert_close(again(**padded()).logits, model(**padded()).logits, atol=0, rtol=0)


# --- what it cannot do is said --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_base_without_a_language_model_head_is_refused(tmp_path: Path, kind: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved(tmp_path / "whole", kind, tied=False))
    model.model.save_pretrained(tmp_path / "base")
    load_pretrained(str(tmp_path / "whole")).save_pretrained(tmp_path / "reward")
    for folder in (tmp_path / "base", tmp_path / "reward"):
        with pytest.raises(ModelError, match="has no language-model head, which loss.text needs; start from a base or instruct model"):
            with_head(folder)


@pytest.mark.parametrize(
    ("kind", "options"), [("gemma2", {"final_logit_softcapping": 30.0}), ("llama", {"logits_scaling": 8.0}), ("llama", {"logit_scale": 0.0625})], ids=str
)
def test_logits_that_are_changed_behind_the_head_are_refused(tmp_path: Path, kind: str, options: dict[str, float]) -> None:
    with pytest.raises(ModelError, match=f"changes its logits by {next(iter(options))}, which text regularisation does not imitate"):
        with_head(saved(tmp_path, kind, **options))


@pytest.mark.parametrize(("kind", "options"), [("gemma2", {"final_logit_softcapping": None}), ("llama", {"logits_scaling": 1.0})], ids=str)
def test_logits_that_are_left_alone_are_not(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    folder = saved(tmp_path, kind, **options)
    with torch.no_grad():
        torch.testing.assert_close(with_head(folder)(**padded(), **reads()).text, expected(folder), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["phi", "gptj"])
def test_a_head_with_a_bias_is_exact_or_refused(tmp_path: Path, kind: str) -> None:
    """Phi's and GPT-J's language-model heads have one."""
    folder = saved(tmp_path / "zero", kind, tied=False)
    language_model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        language_model.lm_head.bias.normal_(std=3.0)
    language_model.save_pretrained(tmp_path / "biased")
    with contextlib.suppress(ModelError), torch.no_grad():
        found = with_head(tmp_path / "biased")(**padded(), **reads()).text
        torch.testing.assert_close(found, expected(tmp_path / "biased"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["", "no-such-folder/model"])
def test_a_model_whose_base_cannot_be_found_is_refused(tmp_path: Path, name: str) -> None:
    """One that was built in memory: nothing says where its language-model head would be."""
    model = load_pretrained(str(saved(tmp_path, tied=False)))
    with pytest.raises(ModelError, match="language-model head"):
        attach_text_head(model, name)
