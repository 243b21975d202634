"""A reward model as a critic: a value at every token, and DeepSpeed-Chat's `forward_value` to the letter.

Its rules, which PPO code written for it relies on: the end of a response is found by the pad *id*, from `prompt_length` on, so that padding in front
of the prompt is harmless; a row without one ends with its last token; `prompt_length` must be more than 1. Where the pad token is EOS, the end score
is that of the token before EOS; a pad id inside the response ends it early.

Shapes: N rows, L tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from palate.errors import DataError, ModelError
from palate.models.heads import head_name, read_rewards
from palate.models.reward_model import is_decoder
from palate.scoring.local import load_scorer
from palate.types import Readout


class Values(NamedTuple):
    """`chosen_end_scores`: DeepSpeed-Chat's name for the values at which the responses end."""

    values: Tensor  # [N, L]
    chosen_end_scores: Tensor  # [N]


class ValueModel(nn.Module):
    """Values of a decoder's head at every token. Several outputs are weighed into one value, as the contract says."""

    def __init__(self, model: PreTrainedModel, pad_id: int, readout: Readout | None = None):
        super().__init__()
        name = head_name(model)
        if name is None or not is_decoder(model):
            raise ModelError(f"{type(model).__name__} reads a pooled first token; a critic needs a decoder, whose head can be read at every token")
        self.readout = readout or Readout()
        if self.readout.aggregate is not None:
            raise ModelError("a model of step rewards gives P(good) at step ends; it has no value at every token")
        self.model, self.pad_id, self._head = model, pad_id, name

    @classmethod
    def from_checkpoint(cls, directory: str | Path) -> ValueModel:
        """The critic of a checkpoint, adapter or hub model, whose golden examples are replayed first."""
        scorer = load_scorer(directory, packing="padded")
        assert scorer.tokenizer.pad_token_id is not None  # `load_scorer` gives it one
        return cls(scorer.model, int(scorer.tokenizer.pad_token_id), scorer.readout)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Values, float32. [N, L], [N, L] -> [N, L]"""
        backbone = getattr(self.model, self.model.base_model_prefix)
        hidden = backbone(input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        outputs = self.model.get_submodule(self._head)(hidden)
        return read_rewards(outputs.flatten(0, 1), self.readout).view(input_ids.shape)

    def forward_value(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, prompt_length: int = 0, return_value_only: bool = False
    ) -> Tensor | Values:
        """Values [N, L] alone, or with the value at the end of each response, [N]. Raises DataError for a prompt_length below 2."""
        values = self(input_ids, attention_mask)
        return values if return_value_only else Values(values, end_scores(values, input_ids, self.pad_id, prompt_length=prompt_length))


def end_scores(values: Tensor, input_ids: Tensor, pad_id: int, *, prompt_length: int) -> Tensor:
    """The value before the first pad id at or after `prompt_length`, or the last one. [N, L], [N, L] -> [N]

    Source: DeepSpeedExamples, dschat/utils/model/reward_model.py, forward_value.
    """
    if prompt_length <= 1:
        raise DataError(f"prompt_length is {prompt_length}; it must be greater than 1, since the end of a response is looked for behind the prompt")
    length = input_ids.shape[1]
    later = torch.arange(length, device=input_ids.device) >= prompt_length
    pads = (input_ids == pad_id) & later
    ends = torch.where(pads.any(dim=1), pads.to(torch.int32).argmax(dim=1), length)
    return values.gather(1, ends[:, None] - 1).squeeze(1)
