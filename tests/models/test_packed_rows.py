"""Packed rows give the rewards and the gradients of padded batches, in every family, and do not feel their neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.families import DECODERS, ENCODERS, FAMILIES, WINDOW, family
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from palate.data.packing import packed_row, whole_sequences
from palate.errors import ConfigError, ModelError
from palate.models.engine import checked, choose_packing, packing_error
from palate.models.layout import Layout
from palate.models.reward_model import load_pretrained

Groups = list[list[list[int]]]
TREES = {
    1: [[5, 6], [9, 14]],
    2: [[7, 5, 20], [1, 3, 4], [12, 0, 2], [0, 9, 4]],
    5: [[6, 3, 0, 11, 2, 4], [2, 1, 1, 1, 1, 15]],
    9: [[10, *range(1, 9), 0]],
}
"""K -> trees: prompts of one token and of none, empty responses, sequences shorter and longer than the window."""


def row(trees: Sequence[Sequence[int]], seed: int = 0) -> dict[str, Any]:
    tokens = torch.randint(3, 300, (1, sum(map(sum, trees))), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": tokens, "trees": trees}


def padded(sequences: Sequence[list[int]]) -> dict[str, Tensor]:
    length = max(map(len, sequences))
    ids = torch.tensor([s + [0] * (length - len(s)) for s in sequences])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(s) + [0] * (length - len(s)) for s in sequences])}


def rewards_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    rewards = model(**batch).logits[:, 0]
    pull = torch.linspace(-1, 2, len(rewards))  # another pull on every response
    (rewards * pull).sum().backward()
    return rewards.detach(), {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_same(model: Any, packed: dict[str, Any], *, tolerance: float = 1e-5) -> None:
    expected, expected_gradients = rewards_and_gradients(model, padded(whole_sequences(packed)))
    got, gradients = rewards_and_gradients(model, packed)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
    assert any(value.abs().max() > 1e-3 for value in expected_gradients.values())
    for name, value in expected_gradients.items():
        torch.testing.assert_close(gradients[name], value, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("responses", TREES)
@pytest.mark.parametrize("name", DECODERS)
def test_trees_equal_padding(name: str, responses: int) -> None:
    model = family(name)
    assert choose_packing(model).packing == "shared"
    longest = max(prefix + max(branches) for prefix, *branches in TREES[responses])
    assert longest > WINDOW
    assert_same(model, row(TREES[responses]))


@pytest.mark.parametrize("name", ENCODERS)
def test_rows_of_whole_sequences_equal_padding(name: str) -> None:
    model = family(name)
    assert choose_packing(model).packing == "packed"
    assert_same(model, row([[0, 9], [0, 1], [0, 31], [0, 2]]))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_backend_meets_the_dense_mask(name: str) -> None:
    model = family(name)
    choose_packing(model)
    trees = TREES[5] if name in DECODERS else [[0, 9], [0, 31]]
    one, of_one = rewards_and_gradients(model, row(trees))
    other, of_other = rewards_and_gradients(model, {**row(trees), "backend": "dense"})
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(of_one, of_other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma2", "modernbert"])
def test_flex_attention_gives_the_same_rewards(name: str) -> None:
    """Forward only: PyTorch has no backward of FlexAttention on CPUs. The block mask is the one that an accelerator gets."""
    torch._dynamo.reset()  # a second shape would be compiled for any length, which gcc refuses to build on a CPU
    model = family(name)
    choose_packing(model)
    trees = TREES[5] if name in DECODERS else [[0, 9], [0, 31]]
    with torch.no_grad():
        expected = model(**row(trees)).logits
        torch.testing.assert_close(model(**row(trees), backend="flex").logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    model = family(name)
    choose_packing(model)
    trees = TREES[5] if name in DECODERS else [[0, 9], [0, 31]]
    rewards, gradients = rewards_and_gradients(model, row(trees))
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again, of_again = rewards_and_gradients(model, row(trees))
    torch.testing.assert_close(again, rewards, atol=1e-6, rtol=0)
    torch.testing.assert_close(of_again, gradients, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_is_within_its_rounding(name: str) -> None:
    """Packed and padded bfloat16 are both as far from float32 as rounding puts them: neither strays farther."""
    model = family(name)
    choose_packing(model)
    packed = row(TREES[5] if name in DECODERS else [[0, 9], [0, 31]])
    exact, of_exact = rewards_and_gradients(model, packed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, gradients = rewards_and_gradients(model, packed)
        reference, of_reference = rewards_and_gradients(model, padded(whole_sequences(packed)))
    assert got.dtype == torch.float32
    assert (got - exact).abs().max() < 0.02 and (reference - exact).abs().max() < 0.02  # rewards near 0.5, 8 significant bits, two layers
    whole = [torch.cat([value.flatten() for value in part.values()]) for part in (of_exact, gradients, of_reference)]
    # all gradients together: a mixture's router may send a token elsewhere for a rounding, in either layout
    assert (whole[1] - whole[0]).norm() <= 2 * (whole[2] - whole[0]).norm() + 1e-3 * whole[0].norm()


@pytest.mark.parametrize("name", ["qwen3", "phi3", "gpt2"])
def test_adapters_train_on_packed_rows(name: str) -> None:
    from peft import LoraConfig, get_peft_model

    model = family(name)
    choose_packing(model)
    names = {"qwen3": ["q_proj", "v_proj", "down_proj"], "phi3": ["qkv_proj", "o_proj"], "gpt2": ["c_attn", "c_proj"]}[name]
    wrapped = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, target_modules=names, init_lora_weights=False, fan_in_fan_out=name == "gpt2"))
    assert_same(wrapped.eval(), row(TREES[5]))


def test_neighbours_do_not_change_a_reward() -> None:
    model = family("qwen3")
    choose_packing(model)
    groups: Groups = [[[5, 6, 7, 8], [5, 6, 9]], [[11, 12, 13], [11, 14]]]
    with torch.no_grad():
        together = model(**packed_row(groups, [2, 1])).logits[:, 0]
        alone = torch.cat([model(**packed_row([g], [p])).logits[:, 0] for g, p in zip(groups, [2, 1], strict=True)])
        swapped = model(**packed_row(groups[::-1], [1, 2])).logits[:, 0]
    torch.testing.assert_close(together, alone, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(together, torch.cat([swapped[2:], swapped[:2]]), atol=1e-7, rtol=1e-6)


def test_the_order_of_branches_does_not_matter() -> None:
    model = family("gemma3")
    choose_packing(model)
    sequences = [[5, 6, 7, *range(20, 32)], [5, 6, 9], [5, 6], [5, 6, 10, 11]]
    with torch.no_grad():
        forth = model(**packed_row([sequences], [2])).logits[:, 0]
        back = model(**packed_row([sequences[::-1]], [2])).logits[:, 0]
    torch.testing.assert_close(forth, back.flip(0), atol=1e-7, rtol=1e-6)


MODELS = {name: family(name) for name in ("llama", "mistral")}


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)),
    st.lists(st.tuples(st.integers(0, 14), st.lists(st.integers(0, 12), min_size=1, max_size=9)), min_size=1, max_size=4),
    st.integers(0, 1000),
)
def test_any_row_of_trees_equals_padding(name: str, shapes: list[tuple[int, list[int]]], seed: int) -> None:
    trees = [[prefix, *branches] if prefix else [0, *(max(b, 1) for b in branches)] for prefix, branches in shapes]
    model = MODELS[name]
    choose_packing(model)
    packed = row(trees, seed)
    with torch.no_grad():
        expected = model(**padded(whole_sequences(packed))).logits
        torch.testing.assert_close(model(**packed).logits, expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(model(**packed, backend="dense").logits, expected, atol=1e-6, rtol=1e-5)


def test_a_layout_by_hand() -> None:
    layout = Layout.of([[3, 2, 1], [1, 0]], causal=True, device=torch.device("cpu"))
    assert layout.positions.tolist() == [[0, 1, 2, 3, 4, 3, 0]]
    assert layout.branch.tolist() == [0, 0, 0, 1, 1, 2, 0] and layout.tree.tolist() == [0, 0, 0, 0, 0, 0, 1]
    assert layout.reads.tolist() == [4, 5, 6]
    seen = ["1000000", "1100000", "1110000", "1111000", "1111100", "1110010", "0000001"]
    assert layout.mask(None).int().tolist() == [[int(digit) for digit in line] for line in seen]
    assert layout.mask(2)[5].int().tolist() == [0, 0, 1, 0, 0, 1, 0]
    assert [(p.start, p.stop, p.spans, p.causal) for p in layout.pieces(None)] == [
        (0, 5, ((0, 5),), True),
        (5, 6, ((0, 3), (5, 6)), False),
        (6, 7, ((6, 7),), True),
    ]
    reading = layout.at_reads().pieces(None)
    assert [(p.start, p.spans) for p in reading] == [(4, ((0, 3), (3, 5))), (5, ((0, 3), (5, 6))), (6, ((6, 7),))]
    assert [p.spans for p in layout.at_reads().pieces(3)] == [((2, 3), (3, 5)), ((1, 3), (5, 6)), ((6, 7),)]


def test_the_last_layer_works_only_where_rewards_are_read() -> None:
    """The feed-forward block of the last layer runs on one token a sequence, that of the first on all."""
    model = family("llama")
    choose_packing(model)
    seen: list[int] = []
    for layer in model.model.layers:
        layer.mlp.down_proj.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[1]))
    model(**row([[7, 5, 20, 0, 0], [1, 3, 4]]))
    assert seen == [7 + 25 + 8, 5]  # two empty responses end with the same token of the prompt


def test_saving_leaves_no_trace_of_the_engine(tmp_path: Any) -> None:
    model = family("llama")
    choose_packing(model)
    model.save_pretrained(tmp_path)
    assert "palate" not in (tmp_path / "config.json").read_text()
    own = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(own).__name__ == "LlamaForSequenceClassification"
    batch = padded([[5, 6, 7, 8], [5, 6]])
    torch.testing.assert_close(own(**batch).logits, model(**batch).logits, atol=1e-6, rtol=0)
    assert load_pretrained(str(tmp_path)).config._attn_implementation == "sdpa"


# --- what cannot be packed is said ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", {"attention_dropout": 0.1}, "attention dropout is 0.1"),
        ("modernbert", {"classifier_pooling": "mean"}, "pools the mean of all tokens"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}}, "longest sequence of a batch"),
        ("llama", {"attn_implementation": "flex_attention"}, "attn_implementation is flex_attention"),
    ],
)
def test_what_would_not_be_exact_is_padded_and_says_why(name: str, changes: dict[str, Any], words: str) -> None:
    model = family(name, **changes)
    engine = choose_packing(model)
    assert engine.packing == "padded" and words in engine.reason
    with pytest.raises(ConfigError, match=words):
        choose_packing(model, "packed")


def test_encoders_are_not_shared() -> None:
    with pytest.raises(ConfigError, match="every token sees the whole sequence"):
        choose_packing(family("bert"), "shared")
    assert choose_packing(family("llama"), "padded").reason == "asked for"
    with pytest.raises(ConfigError, match="expected one of auto, shared, packed, padded"):
        choose_packing(family("llama"), "tight")


def test_a_model_that_is_not_exact_is_found_out() -> None:
    """A layer that looks at its neighbour in the row breaks packing in a way that no config shows."""
    model = family("llama")
    engine = choose_packing(model)
    packed = packed_row([[[5, 6, 7, 8], [5, 6, 9]], [[11, 12]]], [2, 0])
    assert packing_error(model, packed, padded(whole_sequences(packed))) is None
    mlp = model.model.layers[0].mlp
    mlp.register_forward_hook(lambda module, inputs, output: output + 3 * output.roll(1, dims=1))
    problem = packing_error(model, packed, padded(whole_sequences(packed)))
    assert problem is not None and "packed rows give" in problem
    assert checked(engine, problem, "auto") == ("padded", problem)
    with pytest.raises(ModelError, match="shared is not exact for this model"):
        checked(engine, problem, "shared")


def test_a_wrapped_model_is_set_up_inside() -> None:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(family("llama"), LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    assert choose_packing(wrapped).packing == "shared"  # type: ignore[arg-type]
    assert_same(wrapped.eval(), row(TREES[2]))


def test_dropout_in_attention_is_refused_at_the_last_moment() -> None:
    model = family("llama")
    choose_packing(model)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(ModelError, match="attention dropout 0.1"):
        model.train()(**row(TREES[2]))
