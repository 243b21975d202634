"""Which token speaks for a response: the last real one, found by the attention mask and never by the pad id.

Shapes: N rows, L tokens, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor


def last_token(attention_mask: Tensor) -> Tensor:
    """Position of the right-most 1 of each row. [N, L] -> [N]; right for left and right padding, and whatever the pad id is.

    Transformers looks for the right-most id that is not the pad id, which misses a final EOS when pad == EOS.
    """
    length = attention_mask.shape[1]
    return length - 1 - attention_mask.flip(1).to(torch.int32).argmax(dim=1)


def gather_tokens(hidden_NLH: Tensor, positions_N: Tensor) -> Tensor:
    """The hidden state at one position of each row. [N, L, H], [N] -> [N, H]"""
    rows = torch.arange(hidden_NLH.shape[0], device=hidden_NLH.device)
    return hidden_NLH[rows, positions_N]
