"""RewardTrainer: transformers.Trainer over index batches, with a loss reduced by the weight of the whole optimizer step.

The constructor is TRL's. What differs underneath: every response is forwarded once and compared by index, in packed rows that compute each
prompt once; a token budget cuts a batch into parts and changes nothing else; 8 steps of accumulation give the gradient of one batch of 8; logged
figures are exact over all comparisons of the interval, not means of batch means; evaluation is exact over comparisons; saving writes the contract.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction, rotate_checkpoints

from palate.data.collation import COMPARISON_KEYS, MODEL_KEYS, PreferenceCollator, extra_columns
from palate.data.formats import parse_row
from palate.data.packing import PackingCollator, default_budget, num_tokens
from palate.data.preparation import is_encoded, prepare
from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import Encoder, EncodeReport
from palate.errors import ConfigError, DataError, ModelError, RowError, StorageError
from palate.losses.objective import Objective
from palate.losses.regularizers import head_overlap
from palate.losses.terms import Outputs
from palate.models.checkpoints import RewardStatistics, read_contract
from palate.models.engine import choose_packing
from palate.models.heads import head_name
from palate.models.reward_model import (
    RewardOutput,
    as_evaluated,
    as_reward_model,
    fit_tokenizer,
    load_tokenizer,
)
from palate.models.text_head import attach_text_head
from palate.reports.model_card import write_model_card
from palate.scoring.contract import NUM_GOLDEN, build_contract
from palate.stats.calibration import fit_temperature
from palate.training.across import STEP_GRADIENT, STEP_SHARE, STEP_VALUE, mark_parts
from palate.training.callbacks import print_samples
from palate.training.config import RewardConfig
from palate.training.embeddings import with_prompt_embeddings
from palate.training.parts import REPEATED, PartsTrainer, parts_of
from palate.training.resume import last_complete, mark_complete
from palate.training.setup import (
    LOSS_PARAMETERS,
    attach_loss_parameters,
    base_of,
    build_model,
    check_model,
    unwrapped,
    within_positions,
    wrap_peft,
)
from palate.training.supervision import check_data, plan
from palate.training.tally import Evaluation, Tally
from palate.types import Exchange, PreferenceGroup

logger = logging.getLogger(__name__)

TrainingData: TypeAlias = Dataset | IterableDataset | Sequence[PreferenceGroup]
EvaluationData: TypeAlias = TrainingData | DatasetDict | IterableDatasetDict | dict[str, Any]

GOLDEN_ROWS_TRIED = 50  # rows looked at for golden examples that fit

COMPILED_VARIANTS = 64
"""Versions that torch.compile may keep of one function: with and without gradients, fixed and free lengths, the last layer and the others
multiply beyond its default of 8, after which it would silently run uncompiled."""

TRACKER_NAMES = {
    "loss": "loss",
    "accuracy": "accuracy",
    "chosen_rewards": "chosen_rewards",
    "rejected_rewards": "rejected_rewards",
    "margin": "reward_margin",
    "learning_rate": "lr",
}
"""Our (and TRL's) metric names -> open-instruct's, which appear as `train/rm/...` and `eval/rm/...` in trackers."""


class RewardTrainer(PartsTrainer):
    """Trains a reward model on preferences; a drop-in for TRL's RewardTrainer.

    Args:
        model: hub id or folder (loaded with one label and a fresh head unless it has a trained one), or a loaded `*ForSequenceClassification`.
        args: a RewardConfig.
        train_dataset, eval_dataset: `datasets` objects in any known layout (see docs/formats.md), already encoded data, or preference groups;
            `eval_dataset` may be a dictionary of them.
        processing_class: the tokenizer; loaded beside the model if not given.
        compute_metrics: called with predictions [P, 2] (rewards of chosen, rejected) and labels [P] of zeros.
        peft_config: wraps the model; the reward head is always added to what is trained and saved.
        quantization_config: handed to from_pretrained where the model is given by name.
    """

    loss_is_scaled_for_ga = True
    args: RewardConfig
    model: Any  # PreTrainedModel, or what PEFT made of it
    processing_class: Any
    objective: Objective

    def __init__(
        self,
        model: str | Path | PreTrainedModel | nn.Module,
        args: RewardConfig | None = None,
        data_collator: Callable[..., Any] | None = None,
        train_dataset: TrainingData | None = None,
        eval_dataset: EvaluationData | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        preprocess_logits_for_metrics: Callable[[Tensor, Tensor], Tensor] | None = None,
        quantization_config: Any = None,
        peft_config: Any = None,
        *,
        data_fingerprint: str | None = None,
    ):
        name = str(model) if isinstance(model, (str, Path)) else str(getattr(model.config, "_name_or_path", ""))
        args = args or RewardConfig(output_dir=f"{Path(name).name or 'model'}-Reward")
        check_single_device(args)
        if args.torch_compile:
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
        set_seed(args.seed)
        self.plan = plan(args.loss_settings(), off_topic=args.off_topic_negatives)
        self.objective = self.plan.objective
        reward_model: Any = build_model(model, args, quantization_config, self.plan.readout.outputs)
        revision = args.model_init_kwargs.get("revision") if isinstance(args.model_init_kwargs, dict) else None
        tokenizer = prepare_tokenizer(
            processing_class or load_tokenizer(name, revision=revision, trust_remote_code=args.trust_remote_code),
            chat_template=args.chat_template_path,
            eos_token=args.eos_token,
            pad_token=args.pad_token,
        )
        fit_tokenizer(reward_model, tokenizer)
        args.max_length = within_positions(args.max_length, reward_model)
        self.encoder = Encoder(tokenizer, max_length=args.max_length, length_policy=args.length_policy, separator=args.prompt_separator)
        check_model(reward_model, self.plan, args)
        packing = "padded" if self.plan.supervision.reads == "divergence_padded" else args.packing
        self.engine = choose_packing(reward_model, packing, args.max_length)
        args.learning_rate = args.resolved_learning_rate(reward_model.num_parameters(), lora=peft_config is not None)
        if peft_config is not None:
            reward_model = wrap_peft(reward_model, peft_config, args)
        attach_loss_parameters(base_of(reward_model), self.objective, args)
        if self.plan.supervision.text:
            attach_text_head(base_of(reward_model), name, revision=revision, trust_remote_code=args.trust_remote_code)
        self.reports: dict[str, EncodeReport] = {}
        self.data_fingerprint = data_fingerprint
        self.reward_statistics: RewardStatistics | None = None
        self._golden = golden_exchanges(train_dataset, self.encoder)
        if isinstance(train_dataset, IterableDataset):
            keep_batches_whole(args)
        if train_dataset is not None:
            train_dataset = self._prepare(train_dataset, args, "train", training=True)
        if eval_dataset is not None:
            eval_dataset = self._prepare_evaluation(eval_dataset, args)
        self.pad = PreferenceCollator(int(tokenizer.pad_token_id), args.pad_to_multiple_of, self.plan.supervision)  # type: ignore[arg-type]
        super().__init__(
            model=reward_model,
            args=args,
            data_collator=data_collator or PackingCollator(self.engine.packing, self.pad, args.token_budget or default_budget(args.device.type)),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        # Trainer calls compute_loss in evaluation only for models that can return a loss without labels.
        self.can_return_loss, self.label_names = True, []
        self.tally = Tally(torch.float32 if args.device.type == "mps" else torch.float64)
        self._evaluated: Evaluation | None = None
        if self.sharded and (self.objective.parameters or self.objective.orthogonal):
            raise ModelError(
                "learned thresholds and length_decorrelation need whole parameters on every rank; fix the threshold, or train without FSDP and ZeRO"
            )
        self.train_dataset, self.eval_dataset = self.with_reference(self.train_dataset), self.with_reference(self.eval_dataset)
        if args.process_index == 0:
            logger.info("packing: %s%s", self.engine.packing, f" ({self.engine.reason})" if self.engine.reason else "")

    # --- data -------------------------------------------------------------------------------------------------------------------------------

    def _prepare(self, data: TrainingData, args: RewardConfig, name: str, *, training: bool = False) -> Dataset | IterableDataset:
        encoded, report = prepare(
            data,
            self.encoder,
            name=name,
            ties=args.ties,
            on_bad_row=args.on_bad_row,
            supervision=self.plan.supervision,
            off_topic=args.off_topic_negatives if training else 0,
            num_proc=args.dataset_num_proc,
            seed=args.seed,
        )
        self.reports[name] = report
        if report.groups and not isinstance(encoded, IterableDataset):
            check_data(self.plan, report, "train" if training else name, ties=args.ties)
        if training and self.plan.settings.cross_prompt is not None:
            with args.main_process_first(desc="embedding prompts"):  # the others find them in the cache
                encoded = with_prompt_embeddings(encoded, self.plan.settings.cross_prompt.encoder)
        if report.groups and args.process_index == 0:
            logger.log(logging.WARNING if report.dropped or report.cut.total() else logging.INFO, "%s data: %s", name, report.summary())
        return encoded

    def _prepare_evaluation(self, data: EvaluationData, args: RewardConfig) -> Any:
        if isinstance(data, dict):
            return {name: self._prepare(part, args, f"eval {name}") for name, part in data.items()}
        return self._prepare(data, args, "eval")

    def with_reference(self, data: Any) -> Any:
        """Encoded data with the log-probability of each response's text under the model as it is before training (`reference`, [K] a group).

        Data as they are where the loss compares with no reference.
        """
        if data is None or self.plan.settings.text is None or self.plan.settings.text.variant != "dpo":
            return data
        if isinstance(data, dict):
            return {name: self.with_reference(part) for name, part in data.items()}
        if isinstance(data, IterableDataset):
            raise ConfigError("loss.text.variant dpo needs the log-probabilities of all data before training, not a stream; dpo_free needs none")
        found: dict[int, list[float]] = {}
        with as_evaluated(self.model):
            for batch in data.shard(self.args.world_size, self.args.process_index).iter(self.args.per_device_eval_batch_size):
                rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
                for part in parts_of(self.data_collator(rows)):
                    ready = self._prepare_inputs(part)
                    outputs: Any = self.model(**{key: value for key, value in ready.items() if key in MODEL_KEYS})
                    text = self.objective.read(outputs.logits, ready, outputs.text).text
                    for group, value in zip(part["response_group"].tolist(), text.tolist(), strict=True):  # type: ignore[union-attr]
                        found.setdefault(group, []).append(value)
        everywhere = {group: values for part in gather_object([found]) for group, values in part.items()}
        return data.add_column("reference", [everywhere[group] for group in data["group"]])

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            columns: Any = [
                "token_ids",
                "length",
                "tokens",
                *COMPARISON_KEYS,
                *extra_columns(self.plan.supervision),
                "prompt_embedding",
                "prompt_number",
                "reference",
            ]
            self._signature_columns = columns

    # --- loss -------------------------------------------------------------------------------------------------------------------------------

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None) -> Any:
        """Loss of an index batch: the sum of each term over what it weighs in the whole optimizer step (`num_items_in_batch`, [T])."""
        if "read_row" in inputs and "attention_mask" in inputs and not bool(inputs["attention_mask"][:, 0].all()):
            raise DataError("rows are padded on the left; a loss on tokens counts positions from the first column, so pad on the right")
        outputs: RewardOutput = model(**{key: value for key, value in inputs.items() if key in MODEL_KEYS})
        read = self.objective.read(outputs.logits, inputs, getattr(outputs, "text", None))  # type: ignore[arg-type]
        result = self.objective(read, inputs, self._loss_parameters())
        weights = result.weights if num_items_in_batch is None else torch.as_tensor(num_items_in_batch).reshape(-1)
        loss = self.objective.loss(result.totals, weights)
        if STEP_SHARE in inputs:
            loss = loss + self._across_share(read, inputs)
        if REPEATED in inputs:
            loss = loss * 0.0
        elif self.model.training:
            groups = inputs["response_group"] if "response_group" in inputs else inputs["group"]
            self.tally.add(result.metrics, read.scores.detach(), num_tokens(inputs), groups)
        elif self._evaluated is not None:
            self._evaluated.add(result, read, inputs)
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients over ranks while weights are already global
        return (loss, outputs) if return_outputs else loss

    def _weight(self, part: dict[str, Any]) -> Tensor:
        return self.objective.weights(part)

    def _loss_parameters(self) -> Mapping[str, Tensor]:
        """What the loss learns beside the model; it rides on the model, so that optimizers, clipping and ranks treat it as the rest."""
        return base_of(unwrapped(self.accelerator, self.model)).loss_parameters if self.objective.parameters else {}

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Trainer's rule, without what the loss learns: a threshold is no weight."""
        return [name for name in super().get_decay_parameter_names(model) if LOSS_PARAMETERS not in name]

    def _head_weight(self) -> Tensor:
        base = base_of(unwrapped(self.accelerator, self.model))
        name = head_name(base)
        return next(parameter for key, parameter in base.named_parameters() if f"{name}." in key and key.endswith("weight") and "original_module" not in key)

    def _across_share(self, read: Outputs, inputs: dict[str, Any]) -> Tensor:
        """This part's share of the terms across the step, with gradient; the shares of a step add up to the whole."""
        share = inputs[STEP_SHARE]
        if STEP_GRADIENT in inputs:
            surrogate = (read.responses * inputs[STEP_GRADIENT]).sum()
            loss = (surrogate - surrogate.detach()) + inputs[STEP_VALUE] * share
        else:  # the part is the step
            across = self.objective.across(read, inputs)
            self._tally_across({name: value.detach() for name, value in across.items()})
            loss = torch.stack(list(across.values())).sum()
        if self.objective.orthogonal:
            overlap = self.objective.orthogonal * head_overlap(self._head_weight().float())
            self.tally.add_term("head_overlap", overlap.detach(), share)
            loss = loss + overlap * share
        return loss

    # --- across the step --------------------------------------------------------------------------------------------------------------------

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The batches of an optimizer step; terms that look across it see all of them here."""
        batches, weight = super().get_batch_samples(*args, **kwargs)
        if self.objective.across and batches:
            self._look_across(batches)
        return batches, weight

    def _look_across(self, batches: list[Any]) -> None:
        model: Any = self.model_wrapped
        parts = [part for batch in batches for part in parts_of(batch)]
        count = int(self.accelerator.gather(torch.tensor([len(parts)], device=self.args.device)).sum())
        for part in parts:
            part[STEP_SHARE] = 1.0 / count
        if count == 1:
            return
        outputs = []
        with torch.no_grad(), self.compute_loss_context_manager():
            model.train()
            for batch in batches:
                ready = self._ready(model, batch)
                own = len(parts_of(batch))
                for i, part in enumerate(ready):
                    given = model(**{key: value for key, value in part.items() if key in MODEL_KEYS})
                    if i < own:
                        outputs.append(self.objective.read(given.logits, part, None))
        self._tally_across(mark_parts(self.objective.across, self.objective.reward, parts, outputs, self.args.process_index))

    def _tally_across(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.tally.add_term(name, value.to(self.args.device))

    # --- metrics ----------------------------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add exact training metrics, and open-instruct's names beside ours. Raises ModelError when the loss is not a number."""
        if "loss" in logs and "eval_loss" not in logs:
            logs |= self.tally.take(self.accelerator, self.objective)
            if not np.isfinite(logs["loss"]):
                raise ModelError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}; lower the learning rate, or look for broken rows. "
                    "The last checkpoint is from before."
                )
        logs |= {f"rm/{theirs}": logs[ours] for ours, theirs in TRACKER_NAMES.items() if ours in logs}
        logs |= {f"eval_rm/{theirs}": logs[f"eval_{ours}"] for ours, theirs in TRACKER_NAMES.items() if f"eval_{ours}" in logs}
        super().log(logs, start_time)

    # --- evaluation --------------------------------------------------------------------------------------------------------------------------

    def evaluation_loop(
        self, dataloader: Any, description: str, prediction_loss_only: bool | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> EvalLoopOutput:
        """Trainer's loop for devices and wrapping, our own figures: exact over items, whatever the batches and ranks.

        The loss is that of the terms; those that look across a training step have no meaning here and are left out.
        """
        self._evaluated = Evaluation()
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        everything = Evaluation({number: figures for part in gather_object([self._evaluated.groups]) for number, figures in part.items()})
        self._evaluated = None
        if not everything.groups:
            raise DataError("the evaluation data gave nothing to evaluate")
        metrics, table = everything.summary(self.objective)
        predictions, labels = torch.from_numpy(table[:, :2]), torch.zeros(len(table), dtype=torch.long)
        if self.preprocess_logits_for_metrics is not None:
            predictions = self.preprocess_logits_for_metrics(predictions, labels)
        if self.compute_metrics is not None and len(table):
            metrics |= self.compute_metrics(EvalPrediction(predictions=predictions.numpy(), label_ids=labels.numpy()))
        self.reward_statistics = reward_statistics(table[:, 0], table[:, 1], table[:, 2])
        ours = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions.numpy(), labels.numpy(), (output.metrics or {}) | ours, len(everything.groups))

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            self._refuse_new_references()
            eval_dataset = self._prepare_evaluation(eval_dataset, self.args)
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.args.num_print_samples > 0 and self.eval_dataset is not None and self.is_world_process_zero():
            self.visualize_samples(self.args.num_print_samples)
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        self._refuse_new_references()
        return super().predict(self._prepare(test_dataset, self.args, metric_key_prefix), ignore_keys, metric_key_prefix)

    def _refuse_new_references(self) -> None:
        if self.plan.settings.text and self.plan.settings.text.variant == "dpo":
            raise ConfigError("loss.text.variant dpo compares with the model before training, which is gone for data given now; give them as eval_dataset")

    def visualize_samples(self, num_print_samples: int = 10) -> None:
        """Print a table of the first evaluation pairs (texts as the model reads them) with their rewards."""
        dataset = next(iter(self.eval_dataset.values())) if isinstance(self.eval_dataset, dict) else self.eval_dataset
        if dataset is None:
            raise DataError("visualize_samples needs an eval_dataset")
        rows = []
        training = self.model.training
        self.model.eval()
        compared = (row for row in iter(dataset) if row["chosen"])
        for row in islice(compared, num_print_samples):
            batch = self.pad.pad(row["token_ids"])
            with torch.inference_mode():
                outputs = self.model(**{key: value.to(self.args.device) for key, value in batch.items()}).logits
            rewards = (outputs @ outputs.new_tensor(self.objective.reading)).tolist()
            a, b = row["chosen"][0], row["rejected"][0]
            texts = [self.processing_class.decode(row["token_ids"][i], skip_special_tokens=True) for i in (a, b)]
            rows.append((*texts, rewards[a], rewards[b]))
        self.model.train(training)
        print_samples(rows, f"Evaluation samples at step {self.state.global_step}")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Trainer's, but `resume_from_checkpoint=True` goes on from the last checkpoint that was written whole."""
        if resume_from_checkpoint is True:
            found = last_complete(str(self.args.output_dir))
            if found is None:
                raise StorageError(f"{self.args.output_dir}: holds no whole checkpoint to resume from")
            resume_from_checkpoint = str(found)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    # --- saving ------------------------------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A resumable checkpoint, or none: what a full disk left half-written is removed."""
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # older ones go when this one is whole, not before
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each rank writes its own random state
            if self.args.should_save:
                run = self._get_output_dir(trial)
                mark_complete(Path(run) / f"checkpoint-{self.state.global_step}", self.state.global_step)
                rotate_checkpoints(run, limit, best_model_checkpoint=self.state.best_model_checkpoint, use_mtime=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "write" not in str(error):  # torch.save reports a full disk as RuntimeError
                raise
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(folder, ignore_errors=True)
            raise StorageError(f"{folder}: the checkpoint could not be written ({error}); it was removed. Free some space and go on with --resume") from error
        finally:
            self.args.save_total_limit = limit

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_loss_parameters(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._load_loss_parameters(str(self.state.best_model_checkpoint))

    def _load_loss_parameters(self, folder: str) -> None:
        if self.objective.parameters:
            saved = read_contract(folder).loss_parameters
            with torch.no_grad():
                for name, value in self._loss_parameters().items():
                    value.copy_(torch.tensor(saved[name]))

    def save_merged(self, output_dir: str) -> None:
        """The adapter added to its base and saved as a full checkpoint; training is over after this."""
        wrapped: Any = unwrapped(self.accelerator, self.model)
        if self.sharded:
            raise ModelError("an adapter on sharded weights cannot be merged here; save it and merge it with `palate merge`")
        merged = as_reward_model(wrapped.merge_and_unload(), self.plan.readout.outputs)
        self.model = self.model_wrapped = merged
        self.save_model(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The model as transformers saves it, plus the contract. Sharded weights cannot be scored here: their contract has no golden examples."""
        if self.objective.parameters:
            state_dict = {key: value for key, value in (state_dict or self.model.state_dict()).items() if LOSS_PARAMETERS not in key}
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
            contract = build_contract(
                self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
                self.encoder,
                golden=self._golden if whole else [],
                readout=self.plan.readout,
                loss_parameters={name: value.tolist() for name, value in self._loss_parameters().items()},
                rewards=self.reward_statistics,
                data_fingerprint=self.data_fingerprint,
            )
            directory = Path(output_dir or self.args.output_dir or ".")
            contract.save(directory)
            write_model_card(directory)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The model card from what was recorded and measured, in place of the one that transformers makes up of the arguments (called before a push)."""
        if self.is_world_process_zero():
            write_model_card(Path(self.args.output_dir or "."))


# --- parts of the constructor -----------------------------------------------------------------------------------------------------------------


def keep_batches_whole(args: RewardConfig) -> None:
    """No dispatching from one rank to the others: it slices tensors by rows, which index batches do not allow."""
    accelerator_config: Any = args.accelerator_config
    accelerator_config.dispatch_batches = False


def check_single_device(args: RewardConfig) -> None:
    """`nn.DataParallel` would slice index tensors by rows; several GPUs need one process each."""
    if args.n_gpu > 1:
        raise ModelError(f"{args.n_gpu} GPUs in one process: start with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU")
    accelerator_config: Any = args.accelerator_config
    if accelerator_config.dispatch_batches:
        raise ModelError("accelerator_config.dispatch_batches=True would slice index batches; leave it unset")


def golden_exchanges(data: Any, encoder: Encoder) -> list[Exchange]:
    """A few exchanges of the training data that fit, to be recorded with their scores (none for streams and encoded data: they have no text)."""
    if data is None or is_encoded(data) or isinstance(data, IterableDataset):
        return []
    found: list[Exchange] = []
    for row in islice(iter(data), GOLDEN_ROWS_TRIED):
        try:
            exchanges = (row if isinstance(row, PreferenceGroup) else parse_row(row, margins=False)).exchanges()[:2]
            lengths = [len(ids) for ids in encoder.encode(exchanges)]
        except RowError:
            continue
        found += [e for e, n in zip(exchanges, lengths, strict=True) if encoder.max_length is None or n <= encoder.max_length]
        if len(found) >= NUM_GOLDEN:
            break
    return found[:NUM_GOLDEN]


def reward_statistics(chosen: np.ndarray, rejected: np.ndarray, probability: np.ndarray) -> RewardStatistics | None:
    """Mean, spread and best temperature on decided comparisons; each comparison brings both of its rewards."""
    decided = probability != 0.5
    if not decided.any():
        return None
    rewards = np.concatenate([chosen[decided], rejected[decided]])
    temperature = fit_temperature(chosen[decided] - rejected[decided])
    return RewardStatistics(float(rewards.mean()), float(rewards.std()), temperature.value, int(decided.sum()))
