"""forward_value: DeepSpeed-Chat's examples, its rules at the edges, and a critic made from our checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.interchange.checkpoints import CHATS, checkpoint
from torch import Tensor

from palate.errors import DataError, ModelError
from palate.interchange.value_model import ValueModel, Values, end_scores
from palate.scoring.local import load_scorer
from palate.types import Readout

C = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers])


@pytest.mark.parametrize(
    ("ids", "pad", "prompt_length", "expected"),
    [
        ((5, 6, 7, 8, 0, 0), 0, 2, 0.4),  # A, its chosen row
        ((5, 6, 9, 0, 0, 0), 0, 2, 0.3),  # A, its rejected row
        ((5, 6, 7, 8, 9, 4), 0, 2, 0.6),  # C: no pad, the last token
        ((5, 0, 6, 7, 0, 0), 0, 3, 0.4),  # H: a pad id in the prompt is not looked at
        ((5, 0, 6, 8, 9, 0), 0, 3, 0.5),  # H, its rejected row (values .1 to .6 here)
        ((0, 0, 5, 6, 7, 0), 0, 4, 0.5),  # F: padding on the left of the prompt is harmless
        ((5, 6, 7, 0, 8, 0), 0, 2, 0.3),  # a pad id inside the response ends it early
        ((2, 5, 6, 7, 2, 2), 2, 3, 0.4),  # E: OPT, whose BOS is its pad token
        ((5, 6, 0, 0, 0, 0), 0, 2, 0.2),  # an empty response: the value of the prompt's last token
    ],
)
def test_the_value_before_the_first_pad_behind_the_prompt(ids: tuple, pad: int, prompt_length: int, expected: float) -> None:
    assert end_scores(row(*C), row(*ids).long(), pad, prompt_length=prompt_length).item() == pytest.approx(expected)


def test_golden_case_h() -> None:
    """Pad == EOS inside a dialogue: forward_value(prompt_length=3) gives .4 and .8, where the pair loss has none."""
    ids = torch.tensor([[5, 0, 6, 7, 0, 0], [5, 0, 6, 8, 9, 0]])
    values = torch.tensor([C, (0.0, 0.1, -0.2, 0.7, 0.8, 0.9)])
    assert end_scores(values, ids, 0, prompt_length=3).tolist() == pytest.approx([0.4, 0.8])


@pytest.mark.parametrize("prompt_length", [0, 1])
def test_a_prompt_of_one_token_is_refused(prompt_length: int) -> None:
    with pytest.raises(DataError, match="must be greater than 1"):
        end_scores(row(*C), row(5, 6, 7, 8, 0, 0).long(), 0, prompt_length=prompt_length)


@pytest.mark.parametrize(("kind", "bias"), [("qwen3", None), ("llama", [0.25])])
def test_a_checkpoint_as_critic(tmp_path: Path, kind: str, bias: list[float] | None) -> None:
    """The value at a sequence's last token is its reward, in whatever batch; values before it do not see what follows."""
    folder = checkpoint(tmp_path / "ours", kind, bias=bias)
    scorer, critic = load_scorer(folder), ValueModel.from_checkpoint(folder)
    ids = [golden.ids for golden in scorer.contract.golden]  # type: ignore[union-attr]
    batch = scorer._pad(ids)
    with torch.no_grad():
        found = critic.forward_value(**batch, prompt_length=2)
        alone = critic.forward_value(torch.tensor([ids[0][:5]]), return_value_only=True)
    assert isinstance(found, Values) and isinstance(alone, Tensor)
    assert found.values.shape == batch["input_ids"].shape and found.values.dtype == torch.float32
    np.testing.assert_allclose(found.chosen_end_scores, scorer.score_ids(ids), atol=1e-5)
    np.testing.assert_allclose(found.values[0, :5], alone[0], atol=1e-5)


def test_gradients_reach_the_backbone(tmp_path: Path) -> None:
    critic = ValueModel.from_checkpoint(checkpoint(tmp_path / "ours"))
    critic(torch.tensor([[5, 6, 7]])).sum().backward()
    assert all(p.grad is not None for name, p in critic.named_parameters() if "layers.0" in name)


def test_several_outputs_are_one_value(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "ours", readout=Readout(("a", "b"), (0.5, -2.0)))
    scorer, critic = load_scorer(folder), ValueModel.from_checkpoint(folder)
    ids = scorer.encoder.encode([stacked(chat) for chat in CHATS])
    with torch.no_grad():
        last = [critic(torch.tensor([one]))[0, -1].item() for one in ids]
    np.testing.assert_allclose(last, scorer.score(CHATS), atol=1e-5)


def stacked(chat: list[dict[str, str]]):
    from palate.data.tokenization import as_exchange

    return as_exchange(chat)


def test_encoders_have_no_value_at_a_token(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="pooled first token"):
        ValueModel.from_checkpoint(checkpoint(tmp_path / "ours", "bert"))
    with pytest.raises(ModelError, match="step rewards"):
        ValueModel.from_checkpoint(checkpoint(tmp_path / "steps", readout=Readout(("bad", "good"), (0.0, 1.0), "min")))
