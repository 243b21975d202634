"""Who is measured: a training step or a scoring pass of each engine and of each peer, as a function of a batch of encoded groups."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

import torch
from datasets import Dataset

from palate.bench.workload import Workload
from palate.data.preparation import ENCODED_FEATURES
from palate.errors import ConfigError
from palate.models.reward_model import PreTrainedModel
from palate.scoring.local import LocalScorer
from palate.training.config import RewardConfig
from palate.training.trainer import RewardTrainer

Batch: TypeAlias = list[dict[str, Any]]
Step: TypeAlias = Callable[[Batch], None]

PEER_PAIRS = 16
"""Pairs of one forward of TRL: what its users set, and as much as memory allows for groups of nine responses (36 pairs, 72 padded rows)."""

PIPELINE_BATCH = 16


def trainer_step(name: str, work: Workload, *, bf16: bool, compile_model: bool = False, token_budget: int | None = None) -> Step:
    """A whole training step (collation, forward, backward, AdamW) of `shared`, `packed`, `padded` (ours) or `trl`."""
    folder = TemporaryDirectory()  # the trainers make their output directory
    options: dict[str, Any] = {
        "output_dir": folder.name,
        "bf16": bf16,
        "gradient_checkpointing": False,
        "report_to": "none",
        "use_cpu": not torch.cuda.is_available(),
        "learning_rate": 1e-5,
        "per_device_train_batch_size": work.batch_size,
        "disable_tqdm": True,
        "logging_strategy": "no",
    }
    model = copy.deepcopy(work.model)
    trainer: Any
    if name == "trl":
        try:
            import trl
        except ImportError as error:
            raise ConfigError("--against trl needs TRL: pip install trl") from error
        pairs = Dataset.from_list(_pairs(work.rows[:1]))
        plain = plain_classifier(model)
        trainer = trl.RewardTrainer(model=plain, args=trl.RewardConfig(**options), train_dataset=pairs, processing_class=work.tokenizer)
    else:
        args = RewardConfig(**options, packing=name, token_budget=token_budget, torch_compile=compile_model)
        data = Dataset.from_list(work.rows[:1], features=ENCODED_FEATURES)
        trainer = RewardTrainer(model=model, args=args, train_dataset=data, processing_class=work.tokenizer)
    trainer.create_optimizer()
    prepared, optimizer = trainer.accelerator.prepare(trainer.model, trainer.optimizer)
    trainer.model_wrapped, trainer.current_gradient_accumulation_steps = prepared, 1

    def step(batch: Batch) -> None:
        if name == "trl":
            pairs = _pairs(batch)
            for start in range(0, len(pairs), PEER_PAIRS):
                trainer.training_step(prepared, trainer.data_collator(pairs[start : start + PEER_PAIRS]))
        else:
            inputs = trainer.data_collator(batch)
            trainer.training_step(prepared, inputs, trainer._get_num_items_in_batch([inputs], trainer.args.device))
        optimizer.step()
        optimizer.zero_grad()
        synchronize()

    step.__dict__["folder"] = folder  # lives as long as the step
    return step


def _pairs(rows: Sequence[dict[str, Any]]) -> Batch:
    """Every comparison as TRL's row of two sequences."""
    return [
        {"chosen_ids": row["token_ids"][a], "rejected_ids": row["token_ids"][b]} for row in rows for a, b in zip(row["chosen"], row["rejected"], strict=True)
    ]


def plain_classifier(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights as transformers' own class, without our forward: what a peer works with."""
    own = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers.models"))
    plain = own(copy.deepcopy(model.config))
    plain.load_state_dict(model.state_dict())
    return plain.to(model.dtype)


def scoring_pass(name: str, work: Workload, *, token_budget: int | None = None) -> Step:
    """Rewards of all responses of a batch: `shared`, `packed` or `padded` (ours), or transformers' `pipeline` in batches of 16."""
    model = copy.deepcopy(work.model)
    if name == "pipeline":
        from transformers import pipeline

        scorer: Any = pipeline("text-classification", model=plain_classifier(model), tokenizer=work.tokenizer, function_to_apply="none")

        def step(batch: Batch) -> None:
            scorer([work.tokenizer.decode(ids) for row in batch for ids in row["token_ids"]], batch_size=PIPELINE_BATCH)

    else:
        local = LocalScorer(model, work.tokenizer, packing=name, token_budget=token_budget)

        def step(batch: Batch) -> None:
            local.score_ids([ids for row in batch for ids in row["token_ids"]])

    return step


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
