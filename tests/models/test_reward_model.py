"""The model: pooling by mask, head in float32, heads kept or initialised, the classes' own names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.conftest import TOKENIZERS, tiny_model
from transformers import AutoModelForSequenceClassification

from palate.errors import ModelError
from palate.models.heads import Float32Linear, head_names, initialise_head
from palate.models.pooling import last_token
from palate.models.reward_model import as_reward_model, fit_tokenizer, load_pretrained, load_tokenizer, pooling_of, position_limit, turn_dropout_off


def test_last_token_by_hand() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert last_token(mask).tolist() == [1, 3, 3, 0]


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_rewards_equal_transformers_own_classifier(kind: str) -> None:
    ids = torch.randint(5, 200, (4, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    own = tiny_model(kind, seed=3).eval()
    own.config.pad_token_id = 0
    expected = own(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(as_reward_model(own)(input_ids=ids, attention_mask=mask).logits, expected)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "bert"])
def test_a_text_scores_the_same_alone_and_in_any_padding(kind: str) -> None:
    """Transformers pools by pad id: with the pad id inside the text (or pad == EOS) it reads another token. We pool by mask."""
    model = as_reward_model(tiny_model(kind)).eval()
    ids = torch.tensor([[7, 8, 9, model.config.pad_token_id or 0, 11]])
    alone = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    pad = torch.zeros((1, 3), dtype=torch.long)
    right = model(input_ids=torch.cat([ids, pad + 5], 1), attention_mask=torch.cat([torch.ones_like(ids), pad], 1)).logits
    torch.testing.assert_close(alone, right, atol=1e-6, rtol=0)
    if kind != "bert":  # BERT's absolute positions shift under left padding; nobody left-pads it
        left = model(
            input_ids=torch.cat([pad + 5, ids], 1),
            attention_mask=torch.cat([pad, torch.ones_like(ids)], 1),
            position_ids=torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]]),
        ).logits
        torch.testing.assert_close(alone, left, atol=1e-6, rtol=0)


def test_the_head_is_float32_under_bfloat16() -> None:
    model = as_reward_model(tiny_model("qwen3").to(torch.bfloat16))
    ids = torch.tensor([[7, 8, 9]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert out.logits.dtype == torch.float32 and model.score.weight.dtype == torch.float32
    assert isinstance(model.score, Float32Linear)


def test_head_initialisation_is_stiennons() -> None:
    """Standard deviation 1/sqrt(h+1); a peer's 1/(h+1) is 32 times smaller at h = 1023."""
    head = torch.nn.Linear(1023, 64, bias=True)
    initialise_head(head, seed=0)
    assert head.weight.std().item() == pytest.approx(1 / math.sqrt(1024), rel=0.02) and head.bias.abs().max().item() == 0.0
    again = torch.nn.Linear(1023, 64, bias=True)
    torch.manual_seed(99)
    initialise_head(again, seed=0)
    torch.testing.assert_close(head.weight, again.weight)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "bert"])
def test_base_models_get_a_new_head_and_keep_their_class(kind: str, base_models: dict[str, Path]) -> None:
    model = load_pretrained(str(base_models[kind]), seed=5)
    again = load_pretrained(str(base_models[kind]), seed=5)
    head = head_names(model)[0]
    assert head == ("classifier" if kind == "bert" else "score")
    torch.testing.assert_close(model.get_submodule(head).weight, again.get_submodule(head).weight)
    assert type(model).__name__.endswith("ForSequenceClassification") and model.config.num_labels == 1
    assert pooling_of(model) == ("first" if kind == "bert" else "last")
    assert (model.get_submodule(head).bias is not None) == (kind == "bert"), "an encoder keeps its own bias, a decoder has none"


def test_a_trained_head_is_never_initialised_again(tmp_path: Path, base_models: dict[str, Path]) -> None:
    model = load_pretrained(str(base_models["qwen3"]), seed=5)
    with torch.no_grad():
        model.score.weight.fill_(0.125)
    model.save_pretrained(tmp_path)
    load_tokenizer(str(base_models["qwen3"])).save_pretrained(tmp_path)
    assert torch.all(load_pretrained(str(tmp_path), seed=1).score.weight == 0.125)
    assert torch.all(AutoModelForSequenceClassification.from_pretrained(tmp_path).score.weight == 0.125)


def test_a_classifier_with_two_labels_is_refused(tmp_path: Path) -> None:
    model = tiny_model("bert")
    model.config.num_labels = 2
    type(model)(model.config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"num_labels=2 \(LABEL_0, LABEL_1\); a reward model has one output"):
        load_pretrained(str(tmp_path))


def test_missing_models_are_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_pretrained(str(tmp_path / "nope"))
    with pytest.raises(ModelError, match="no config.json"):
        load_pretrained(str(tmp_path))
    (tmp_path / "model").write_text("")
    with pytest.raises(ModelError, match="is a file; expected a checkpoint directory"):
        load_tokenizer(str(tmp_path / "model"))
    with pytest.raises(ModelError, match="^nowhere: no such folder here, and from the hub no tokenizer could be loaded"):
        load_tokenizer("nowhere")


def test_embeddings_grow_with_the_tokenizer_and_pad_ids_agree() -> None:
    from palate.data.templates import prepare_tokenizer

    model, tokenizer = tiny_model("llama"), prepare_tokenizer(TOKENIZERS["llama"]())
    before = model.get_input_embeddings().num_embeddings
    fit_tokenizer(model, tokenizer)
    assert model.get_input_embeddings().num_embeddings == before + 1 == len(tokenizer)
    assert model.config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id


def test_a_bfloat16_load_does_not_round_the_head(tmp_path: Path, base_models: dict[str, Path]) -> None:
    model = load_pretrained(str(base_models["qwen3"]), dtype=torch.bfloat16)
    with torch.no_grad():
        model.score.weight.fill_(0.1)
    model.save_pretrained(tmp_path)
    again = load_pretrained(str(tmp_path), dtype=torch.bfloat16)
    assert again.model.embed_tokens.weight.dtype == torch.bfloat16
    assert torch.all(again.score.weight == torch.tensor(0.1)), "0.1 is not a bfloat16 number"


def test_positions_and_dropout_of_other_families() -> None:
    from transformers import AutoModelForSequenceClassification, GPT2Config, OPTConfig, T5Config

    gpt2 = AutoModelForSequenceClassification.from_config(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=40, vocab_size=50, num_labels=1, pad_token_id=0)
    )
    opt_config = OPTConfig(
        hidden_size=32, ffn_dim=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=40, vocab_size=50, word_embed_proj_dim=32, num_labels=1
    )
    opt = AutoModelForSequenceClassification.from_config(opt_config)
    for model in (gpt2, opt):
        limit = position_limit(model)
        assert limit == 40
        turn_dropout_off(as_reward_model(model).train())
        ids = torch.randint(3, 50, (1, limit))
        a, b = (model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits for _ in range(2))
        torch.testing.assert_close(a, b)
        assert not [name for name, value in model.config.to_dict().items() if "dropout" in name and isinstance(value, float) and value]
    assert T5Config().is_encoder_decoder


def test_encoder_decoders_are_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    T5ForConditionalGeneration(T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=20)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is an encoder-decoder"):
        load_pretrained(str(tmp_path))


def test_positions_and_dropout() -> None:
    assert position_limit(tiny_model("bert")) == 512 and position_limit(tiny_model("qwen3")) is None
    model = tiny_model("bert", hidden_dropout_prob=0.3).train()
    turn_dropout_off(model)
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(model(input_ids=ids).logits, model(input_ids=ids).logits)
