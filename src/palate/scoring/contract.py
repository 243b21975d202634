"""The contract of a model as it stands, with golden examples; and the check that what was saved scores the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

from palate.data.collation import PreferenceCollator
from palate.data.tokenization import Encoder
from palate.errors import ContractError
from palate.models.checkpoints import Golden, RewardContract, RewardStatistics, package_versions, read_contract, score_tolerance
from palate.models.heads import read_rewards
from palate.models.reward_model import as_evaluated, load_pretrained, pooling_of
from palate.types import Exchange, Readout, TokenIds

SAFE_SHARE = 0.8  # of the free memory that loading a saved model again may take

NUM_GOLDEN = 3  # examples recorded; enough to catch a changed template, tokenizer or head, little enough to replay at every load


def build_contract(
    model: PreTrainedModel,
    encoder: Encoder,
    *,
    golden: Sequence[Exchange],
    readout: Readout | None = None,
    loss_parameters: dict[str, list[float]] | None = None,
    rewards: RewardStatistics | None = None,
    data_fingerprint: str | None = None,
) -> RewardContract:
    """The contract of a model as it stands; the golden examples are scored here, in evaluation mode and without autocast."""
    tokenizer = encoder.tokenizer
    wrapper: Any = model
    # rewards on rounded weights are not those of the weights that a load brings: nothing to compare with, and no float32 that was never there
    quantized = bool(getattr(model, "is_quantized", False))
    scored = wrapper.get_base_model() if isinstance(getattr(wrapper, "peft_config", None), dict) else wrapper
    return RewardContract(
        architecture=type(scored).__name__,
        pooling=pooling_of(scored),
        max_length=encoder.max_length,
        length_policy=encoder.length_policy,
        separator=encoder.separator,
        chat_template_sha256=encoder.template_hash(),
        prefix_ids=list(encoder.rules.prefix),
        eos_id=encoder.rules.eos_id,
        pad_id=int(tokenizer.pad_token_id),
        text_end=encoder.text_end,
        weights_dtype="bfloat16" if quantized else str(model.dtype).removeprefix("torch."),
        readout=readout or Readout(),
        loss_parameters=loss_parameters or {},
        rewards=rewards,
        golden=[] if quantized else golden_examples(model, encoder, golden, readout or Readout()),
        data_fingerprint=data_fingerprint,
        versions=package_versions(),
    )


def golden_examples(model: PreTrainedModel, encoder: Encoder, exchanges: Sequence[Exchange], readout: Readout) -> list[Golden]:
    """Exchanges with their scores, read at the last token (a model of step rewards: P(good) there, whatever steps there are)."""
    ids = encoder.encode(exchanges)
    kept = [(e, i) for e, i in zip(exchanges, ids, strict=True) if encoder.max_length is None or len(i) <= encoder.max_length][:NUM_GOLDEN]
    if not kept:
        return []
    batch = PreferenceCollator(int(encoder.tokenizer.pad_token_id)).pad([i for _, i in kept])
    with as_evaluated(model):
        outputs = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
    scores = read_rewards(outputs, readout).cpu().tolist()
    return [
        Golden(
            {"prompt": e.prompt, "response": e.response, "template_args": dict(e.template_args)},
            "" if isinstance(e.response, TokenIds) else encoder.render(e),
            i,
            score,
        )
        for (e, i), score in zip(kept, scores, strict=True)
    ]


def check_saved(directory: str | Path, size: int | None = None) -> str | None:
    """Load a model that was just saved and score its golden examples again. Raises ContractError where a score differs.

    Returns why this was not done, in words: no golden examples, or no memory for a second model. `size`: bytes that it takes (an adapter's folder does
    not hold its base); the folder's own weights otherwise.
    """
    contract = read_contract(directory)
    if not contract.golden:
        return "it has no golden examples"
    needed = size or sum(path.stat().st_size for path in Path(directory).rglob("*.safetensors"))
    free = psutil.virtual_memory().available
    if needed > SAFE_SHARE * free:
        return f"it takes {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
    dtype = getattr(torch, contract.weights_dtype)
    model = load_pretrained(str(directory), outputs=contract.readout.outputs, dtype=dtype)
    batch = PreferenceCollator(contract.pad_id).pad([golden.ids for golden in contract.golden])
    with as_evaluated(model):
        scores = read_rewards(model(**batch).logits, contract.readout).tolist()
    for golden, score in zip(contract.golden, scores, strict=True):
        if not abs(score - golden.score) <= score_tolerance(dtype) * max(1.0, abs(golden.score)):
            raise ContractError(
                f"{directory}: the saved model scores {score:.6f} where the trained one scored {golden.score:.6f}; what was trained is not all saved"
            )
    return None
