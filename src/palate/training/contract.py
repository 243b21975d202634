"""What a finished training writes beside its weights: the contract with golden examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from palate.data.collation import PreferenceCollator
from palate.data.tokenization import Encoder
from palate.models.checkpoints import Golden, RewardContract, RewardStatistics, package_versions
from palate.models.heads import read_rewards
from palate.models.reward_model import as_evaluated, pooling_of
from palate.types import Exchange, Readout, TokenIds

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
        weights_dtype=str(model.dtype).removeprefix("torch."),
        readout=readout or Readout(),
        loss_parameters=loss_parameters or {},
        rewards=rewards,
        golden=golden_examples(model, encoder, golden, readout or Readout()),
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
