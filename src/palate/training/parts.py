"""Trainer over batches that come in parts: each part forward and backward in turn, one optimizer step, the same work on every rank.

A collator gives `{"parts": [index batch, ...]}`, each part within the token budget. What the optimizer sees is the sum over parts and ranks; how a
batch is cut, and whether its parts are packed or padded, shows in speed and memory alone. The first packed part is computed both ways.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from torch.utils.data import RandomSampler
from transformers import Trainer

from palate.data.collation import COMPARISON_KEYS, PreferenceCollator
from palate.data.packing import BalancedSampler, first_trees, whole_sequences
from palate.errors import DataError
from palate.models.engine import CHECKED_SEQUENCES, Engine, checked, packing_error
from palate.training.config import RewardConfig

logger = logging.getLogger(__name__)

REPEATED = "repeated"
"""Marks a part that a rank computes again only to keep step with the others; it counts for nothing."""


def parts_of(batch: dict[str, Any]) -> list[dict[str, Any]]:
    """The index batches of a batch (one, where a collator of the user's gave it)."""
    return batch.get("parts") or [batch]


class PartsTrainer(Trainer):
    """The loop of a reward trainer without its loss. Subclasses set `engine` and `pad` before Trainer's own constructor runs."""

    args: RewardConfig
    engine: Engine
    pad: PreferenceCollator
    packing_checked = False

    # --- order ---

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Trainer's order; among several ranks, each step's groups are dealt so that all have as many tokens to compute."""
        base = super()._get_train_sampler(train_dataset)
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        if self.args.world_size == 1 or base is None:
            return base
        if type(base) is RandomSampler:  # as accelerate seeds it, so that every rank draws the same order
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            base = SeedableRandomSampler(data, data_seed=seed, generator=torch.Generator())
        name = "tokens" if "tokens" in data.column_names else "length"
        sizes = data.select_columns(name).with_format("numpy")[:][name]
        return BalancedSampler(base, sizes, self._train_batch_size, self.args.world_size * self.args.gradient_accumulation_steps)

    # --- steps ---

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Forward and backward of each part in turn; gradients are exchanged between ranks after the last. Returns the loss of the batch."""
        *others, last = self._ready(model, inputs)
        losses = []
        with self._offload():
            for part in others:
                with self._more_to_come(model):
                    losses.append(super().training_step(model, part, num_items_in_batch))
            losses.append(super().training_step(model, last, num_items_in_batch))
        return torch.stack(losses).sum()

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None) -> Any:
        """The parts of an evaluation batch; `compute_loss` records the rewards, and the loss is computed from them at the end."""
        losses: list[Any] = [super(PartsTrainer, self).prediction_step(model, part, True, ignore_keys)[0] for part in self._ready(model, inputs)]
        return torch.stack(losses).mean(), None, None

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor | None:
        """What an optimizer step weighs, over parts, accumulation steps and ranks."""
        parts = [part for batch in batch_samples for part in parts_of(batch)]
        if not parts:
            return None
        if "weight" not in parts[0]:
            raise DataError(f"the data collator gave {sorted(parts[0])}; expected an index batch with {', '.join(COMPARISON_KEYS)}")
        weight: Any = self.accelerator.reduce(torch.stack([self._weight(part) for part in parts]).sum(0).to(device), "sum")
        return weight

    def _weight(self, part: dict[str, Any]) -> Tensor:
        """What a part weighs in the loss; subclasses with several terms give one number a term."""
        return part["weight"].sum()

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return sum(super(PartsTrainer, self).floating_point_ops(part) for part in parts_of(inputs))

    @property
    def sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _ready(self, model: nn.Module, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The parts of a batch as they are computed: checked once, padded if the check said so, as many on each rank as sharded weights need."""
        parts = [self._prepare_inputs(part) for part in parts_of(inputs)]
        if not self.packing_checked and "trees" in parts[0]:
            self._check_packing(model, parts[0])
        if self.engine.packing == "padded":
            parts = [self._padded(part) if "trees" in part else part for part in parts]
        if self.sharded and self.args.world_size > 1:
            # every rank must gather the shards as often; a rank with fewer parts repeats its last one at weight 0
            most = int(self.accelerator.gather(torch.tensor([len(parts)], device=self.args.device)).max())
            repeated = {**parts[-1], REPEATED: True}
            parts += [repeated] * (most - len(parts))
        return parts

    @contextlib.contextmanager
    def _more_to_come(self, model: nn.Module) -> Iterator[None]:
        """No exchange of gradients yet. FSDP exchanges all the same: holding whole gradients back would cost the memory that it saves."""
        state: Any = self.accelerator.gradient_state
        before = state.sync_gradients
        state._set_sync_gradients(False)
        with contextlib.nullcontext() if self.sharded else self.accelerator.no_sync(model):
            yield
        state._set_sync_gradients(before)

    @contextlib.contextmanager
    def _offload(self) -> Iterator[None]:
        if not self.args.activation_offloading:
            yield
            return
        with torch.autograd.graph.save_on_cpu(pin_memory=torch.cuda.is_available()):
            yield

    # --- packed or padded ---

    def _check_packing(self, model: nn.Module, part: dict[str, Any]) -> None:
        """Compute the first sequences packed and padded, on every rank; where they differ, everything is padded from here on."""
        self.packing_checked = True
        packed = first_trees(part, CHECKED_SEQUENCES)
        padded = self._prepare_inputs(self.pad.pad(whole_sequences(packed)))
        precision = torch.bfloat16 if self.sharded and self.args.bf16 else torch.float16 if self.sharded and self.args.fp16 else None
        problem = packing_error(model, packed, padded, precision)
        ranks = self.accelerator.reduce(torch.tensor(float(problem is not None), device=self.args.device), "sum")
        if ranks and problem is None:
            problem = "packed and padded rewards differ on another rank"
        self.engine = checked(self.engine, problem, self.args.packing)
        if problem and self.args.process_index == 0:
            logger.warning("packing: padded (%s)", problem)

    def _padded(self, part: dict[str, Any]) -> dict[str, Any]:
        comparisons = {key: value for key, value in part.items() if key not in ("input_ids", "trees")}
        return self._prepare_inputs(self.pad.pad(whole_sequences(part))) | comparisons
