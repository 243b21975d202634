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
from transformers.trainer_utils import EvalLoopOutput, EvalPrediction

from palate.data.collation import COMPARISON_KEYS, PreferenceCollator
from palate.data.formats import parse_row
from palate.data.packing import PackingCollator, default_budget, num_tokens
from palate.data.preparation import is_encoded, prepare
from palate.data.tokenization import Encoder, EncodeReport, prepare_tokenizer
from palate.errors import DataError, ModelError, RowError, StorageError
from palate.losses.objective import Objective
from palate.models.checkpoints import RewardStatistics
from palate.models.engine import choose_packing
from palate.models.heads import head_name
from palate.models.reward_model import RewardOutput, as_reward_model, fit_tokenizer, load_pretrained, load_tokenizer, position_limit, turn_dropout_off
from palate.stats.calibration import fit_temperature
from palate.training.callbacks import print_samples
from palate.training.config import RewardConfig
from palate.training.contract import NUM_GOLDEN, build_contract
from palate.training.parts import REPEATED, PartsTrainer
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
        reward_model: Any = build_model(model, args, quantization_config)
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
        self.engine = choose_packing(reward_model, args.packing, args.max_length)
        args.learning_rate = args.resolved_learning_rate(reward_model.num_parameters(), lora=peft_config is not None)
        if peft_config is not None:
            reward_model = wrap_peft(reward_model, peft_config, args)
        self.objective = Objective(args.loss_type, args.use_margins, args.label_smoothing, args.center_rewards_coefficient or 0.0)
        self.reports: dict[str, EncodeReport] = {}
        self.data_fingerprint = data_fingerprint
        self.reward_statistics: RewardStatistics | None = None
        self._golden = golden_exchanges(train_dataset, self.encoder)
        if isinstance(train_dataset, IterableDataset):
            keep_batches_whole(args)
        if train_dataset is not None:
            train_dataset = self._prepare(train_dataset, args, "train")
        if eval_dataset is not None:
            eval_dataset = self._prepare_evaluation(eval_dataset, args)
        self.pad = PreferenceCollator(int(tokenizer.pad_token_id), args.pad_to_multiple_of)  # type: ignore[arg-type]
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
        self._sums: dict[str, Tensor] = {}
        self._extremes: list[Tensor] = []
        self._episodes, self._tokens = 0, 0
        self._evaluated: dict[int, np.ndarray] | None = None
        if args.process_index == 0:
            logger.info("packing: %s%s", self.engine.packing, f" ({self.engine.reason})" if self.engine.reason else "")

    # --- data -------------------------------------------------------------------------------------------------------------------------------

    def _prepare(self, data: TrainingData, args: RewardConfig, name: str) -> Dataset | IterableDataset:
        encoded, report = prepare(
            data, self.encoder, name=name, ties=args.ties, on_bad_row=args.on_bad_row, margins=args.use_margins, num_proc=args.dataset_num_proc
        )
        self.reports[name] = report
        if report.groups and args.process_index == 0:
            logger.log(logging.WARNING if report.dropped or report.cut.total() else logging.INFO, "%s data: %s", name, report.summary())
        return encoded

    def _prepare_evaluation(self, data: EvaluationData, args: RewardConfig) -> Any:
        if isinstance(data, dict):
            return {name: self._prepare(part, args, name) for name, part in data.items()}
        return self._prepare(data, args, "eval")

    def _set_signature_columns_if_needed(self) -> None:
        if self._signature_columns is None:
            columns: Any = ["token_ids", "length", "tokens", *COMPARISON_KEYS]
            self._signature_columns = columns

    # --- loss -------------------------------------------------------------------------------------------------------------------------------

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None) -> Any:
        """Loss of an index batch: sum of weighted losses over the weight of the whole optimizer step (`num_items_in_batch`)."""
        comparisons = {key: inputs[key] for key in COMPARISON_KEYS}
        rows = {key: value for key, value in inputs.items() if key not in (*COMPARISON_KEYS, REPEATED)}
        outputs: RewardOutput = model(**rows)
        rewards = outputs.logits[:, 0]  # type: ignore[index]
        result = self.objective(rewards, comparisons)
        if num_items_in_batch is None:
            loss = result.total / result.weight
        else:
            # DDP averages gradients over ranks while the weight is already global.
            loss = result.total / num_items_in_batch * self.accelerator.num_processes
        if self.model.training and REPEATED not in inputs:
            self._count(result.metrics, rewards.detach(), inputs)
        elif self._evaluated is not None:
            self._record(rewards.detach(), comparisons)
        return (loss, outputs) if return_outputs else loss

    # --- metrics ----------------------------------------------------------------------------------------------------------------------------

    def _count(self, metrics: Mapping[str, tuple[Tensor, Tensor]], rewards: Tensor, inputs: Mapping[str, Tensor]) -> None:
        """Add (sum, weight) of each metric on the device; nothing is synchronised until the next log."""
        for name, pair in metrics.items():
            value = torch.stack(pair).to(self._sum_dtype)
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        tokens = torch.as_tensor(num_tokens(inputs), device=rewards.device)
        counts = torch.stack([rewards.new_tensor(len(rewards)), rewards.sum(), tokens]).to(self._sum_dtype)
        self._sums["_counts"] = self._sums.get("_counts", torch.zeros_like(counts)) + counts
        groups = inputs["group"]  # comparisons of a group stand together, so changes count groups (and nothing is synchronised)
        self._sums["_groups"] = self._sums.get("_groups", torch.zeros_like(counts[:1])) + 1 + (groups[1:] != groups[:-1]).sum()
        self._extremes.append(torch.stack([rewards.min(), -rewards.max()]).to(self._sum_dtype))

    @property
    def _sum_dtype(self) -> torch.dtype:
        return torch.float32 if self.args.device.type == "mps" else torch.float64  # Apple's GPUs have no float64

    def _take_metrics(self) -> dict[str, float]:
        """Exact metrics over all comparisons since the last log, over all ranks; resets the sums."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        packed = torch.cat([self._sums[name] for name in names])
        total = self.accelerator.reduce(packed, "sum").cpu()
        lowest, highest = self.accelerator.gather(torch.stack(self._extremes).min(dim=0).values[None]).min(dim=0).values.tolist()
        parts = dict(zip(names, torch.split(total, [len(self._sums[name]) for name in names]), strict=True))
        self._sums, self._extremes = {}, []
        num_rewards, reward_sum, tokens = parts.pop("_counts").tolist()
        self._episodes += int(parts.pop("_groups").item())
        self._tokens += int(tokens)
        metrics = {name: (value[0] / value[1]).item() for name, value in parts.items() if value[1] > 0}
        return metrics | {
            "min_reward": lowest,
            "mean_reward": reward_sum / num_rewards,
            "max_reward": -highest,
            "num_tokens": self._tokens,
            "episode": self._episodes,
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add exact training metrics, and open-instruct's names beside ours. Raises ModelError when the loss is not a number."""
        if "loss" in logs and "eval_loss" not in logs:
            logs |= self._take_metrics()
            if not np.isfinite(logs["loss"]):
                raise ModelError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}; lower the learning rate, or look for broken rows. "
                    "The last checkpoint is from before."
                )
        logs |= {f"rm/{theirs}": logs[ours] for ours, theirs in TRACKER_NAMES.items() if ours in logs}
        logs |= {f"eval_rm/{theirs}": logs[f"eval_{ours}"] for ours, theirs in TRACKER_NAMES.items() if f"eval_{ours}" in logs}
        super().log(logs, start_time)

    # --- evaluation --------------------------------------------------------------------------------------------------------------------------

    def _record(self, rewards: Tensor, comparisons: Mapping[str, Tensor]) -> None:
        """Keep the rewards of every comparison, by group, so that a group repeated to fill up a rank counts once."""
        assert self._evaluated is not None
        columns = [rewards.float()[comparisons["chosen"]], rewards.float()[comparisons["rejected"]]]
        columns += [comparisons[key] for key in ("weight", "probability", "margin")]
        table = torch.stack([column.float() for column in columns], dim=1).cpu().double().numpy()
        groups = comparisons["group"].cpu().numpy()
        for group in np.unique(groups):
            self._evaluated[int(group)] = table[groups == group]

    def evaluation_loop(
        self, dataloader: Any, description: str, prediction_loss_only: bool | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> EvalLoopOutput:
        """Trainer's loop for devices and wrapping, our own figures: exact over comparisons, whatever the batches and ranks."""
        self._evaluated = {}
        output = super().evaluation_loop(dataloader, description, True, ignore_keys, metric_key_prefix)
        gathered = gather_object([self._evaluated])
        self._evaluated = None
        groups = {group: table for part in gathered for group, table in part.items()}
        if not groups:
            raise DataError("the evaluation data gave no comparison")
        table = np.concatenate([groups[group] for group in sorted(groups)])  # [P, 5]
        columns = torch.from_numpy(table)
        chosen, rejected, weight, probability, margin = columns.unbind(1)
        batch = {
            "chosen": torch.arange(len(table)),
            "rejected": torch.arange(len(table)) + len(table),
            "weight": weight,
            "probability": probability,
            "margin": margin,
        }
        result = self.objective(torch.cat([chosen, rejected]), batch)
        metrics = {name: (total / norm).item() for name, (total, norm) in result.metrics.items() if norm > 0}
        rewards = torch.cat([chosen, rejected])
        metrics |= {"min_reward": rewards.min().item(), "mean_reward": rewards.mean().item(), "max_reward": rewards.max().item(), "comparisons": len(table)}
        predictions, labels = columns[:, :2], torch.zeros(len(table), dtype=torch.long)
        if self.preprocess_logits_for_metrics is not None:
            predictions = self.preprocess_logits_for_metrics(predictions, labels)
        if self.compute_metrics is not None:
            metrics |= self.compute_metrics(EvalPrediction(predictions=predictions.numpy(), label_ids=labels.numpy()))
        self.reward_statistics = reward_statistics(table[:, 0], table[:, 1], table[:, 3])
        ours = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(predictions.numpy(), labels.numpy(), (output.metrics or {}) | ours, len(groups))

    def evaluate(self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            eval_dataset = self._prepare_evaluation(eval_dataset, self.args)
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.args.num_print_samples > 0 and self.eval_dataset is not None and self.is_world_process_zero():
            self.visualize_samples(self.args.num_print_samples)
        return metrics

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        return super().predict(self._prepare(test_dataset, self.args, metric_key_prefix), ignore_keys, metric_key_prefix)

    def visualize_samples(self, num_print_samples: int = 10) -> None:
        """Print a table of the first evaluation pairs (texts as the model reads them) with their rewards."""
        dataset = next(iter(self.eval_dataset.values())) if isinstance(self.eval_dataset, dict) else self.eval_dataset
        if dataset is None:
            raise DataError("visualize_samples needs an eval_dataset")
        rows = []
        training = self.model.training
        self.model.eval()
        for row in islice(iter(dataset), num_print_samples):
            batch = PreferenceCollator(int(self.processing_class.pad_token_id))([row])
            with torch.inference_mode():
                rewards = self.model(**{key: batch[key].to(self.args.device) for key in ("input_ids", "attention_mask")}).logits[:, 0].tolist()
            a, b = row["chosen"][0], row["rejected"][0]
            texts = [self.processing_class.decode(row["token_ids"][i], skip_special_tokens=True) for i in (a, b)]
            rows.append((*texts, rewards[a], rewards[b]))
        self.model.train(training)
        print_samples(rows, f"Evaluation samples at step {self.state.global_step}")

    # --- saving ------------------------------------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A resumable checkpoint, or none: what a full disk left half-written is removed."""
        try:
            super()._save_checkpoint(model, trial)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "write" not in str(error):  # torch.save reports a full disk as RuntimeError
                raise
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            shutil.rmtree(folder, ignore_errors=True)
            raise StorageError(f"{folder}: the checkpoint could not be written ({error}); it was removed. Free some space and go on with --resume") from error

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """The model as transformers saves it, plus the contract. Sharded weights cannot be scored here: their contract has no golden examples."""
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            whole = not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
            contract = build_contract(
                self.accelerator.unwrap_model(self.model, keep_torch_compile=False),
                self.encoder,
                golden=self._golden if whole else [],
                rewards=self.reward_statistics,
                data_fingerprint=self.data_fingerprint,
            )
            contract.save(output_dir or self.args.output_dir)  # type: ignore[arg-type]


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


def build_model(model: str | Path | nn.Module, args: RewardConfig, quantization_config: Any) -> PreTrainedModel:
    if not isinstance(model, (str, Path)):
        if args.model_init_kwargs:
            raise ModelError("model_init_kwargs are for a model given by name; this one is loaded already")
        reward_model: Any = model
        if isinstance(getattr(model, "peft_config", None), dict):  # a PeftModel: its base does the scoring
            as_reward_model(reward_model.get_base_model())
            check_head_trains(reward_model)
        else:
            as_reward_model(reward_model)
        if args.disable_dropout:
            turn_dropout_off(reward_model)
        return reward_model
    assert not isinstance(args.model_init_kwargs, str)  # TrainingArguments has parsed JSON by now
    kwargs: dict[str, Any] = dict(args.model_init_kwargs or {})
    if quantization_config is not None:
        if "quantization_config" in kwargs:
            raise ModelError("quantization_config is given twice: as an argument and in model_init_kwargs")
        kwargs["quantization_config"] = quantization_config
    kwargs.pop("num_labels", None)
    return load_pretrained(
        str(model), trust_remote_code=kwargs.pop("trust_remote_code", args.trust_remote_code), disable_dropout=args.disable_dropout, seed=args.seed, **kwargs
    )


def wrap_peft(model: PreTrainedModel, peft_config: Any, args: RewardConfig) -> Any:
    """The model with adapters; the head joins `modules_to_save`, since PEFT would otherwise freeze it at its random start and not save it."""
    try:
        from peft import PeftModel, get_peft_model
    except ImportError as error:
        raise ModelError("peft_config needs the peft package: pip install 'palate[peft]'") from error
    if isinstance(model, PeftModel):
        raise ModelError("the model already is a PeftModel; merge it first, or leave out peft_config")
    head = head_name(model)
    # What pre-training did not have (a fresh pooler, say) is random until it is trained, and must be saved with the head.
    fresh = getattr(model, "_new_head_modules", [])
    peft_config.task_type = "SEQ_CLS"
    peft_config.modules_to_save = sorted({*(peft_config.modules_to_save or []), *(name.removeprefix(f"{model.base_model_prefix}.") for name in (head, *fresh))})
    wrapped = get_peft_model(model, peft_config)
    check_head_trains(wrapped)
    if args.gradient_checkpointing:
        wrapped.enable_input_require_grads()
    return wrapped


def check_head_trains(model: Any) -> None:
    head = head_name(model.get_base_model())
    if not any(parameter.requires_grad and f".{head}." in name for name, parameter in model.named_parameters()):
        raise ModelError(f"the reward head `{head}` would not be trained; give task_type='SEQ_CLS' or modules_to_save=['{head}']")


def within_positions(max_length: int | None, model: PreTrainedModel) -> int | None:
    """`max_length`, lowered (and said so) to what the model's learned positions allow."""
    limit = position_limit(model)
    if limit is None or (max_length is not None and max_length <= limit):
        return max_length
    logger.warning("max_length is %s, but %s has %s positions: %s is used", max_length, type(model).__name__, limit, limit)
    return limit


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
