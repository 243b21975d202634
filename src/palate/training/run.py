"""One run, from settings to a checkpoint: load data, look it over, build the trainer, train, save the contract.

`dry_run` stops before training and says what would happen.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml
from transformers import ProgressCallback

from palate.data.loading import fingerprint, prompt_key
from palate.data.tokenization import EncodeReport
from palate.errors import ConfigError, Interrupted, PalateError, StorageError
from palate.models.checkpoints import package_versions, whole_directory, write_text
from palate.reports.model_card import write_model_card
from palate.scoring.adapters import member_folder
from palate.scoring.contract import check_saved
from palate.training.adapters import adapter_config, quantization_config
from palate.training.callbacks import StopOnInterrupt, TrainingBar
from palate.training.config import RewardConfig
from palate.training.data import RunData, load_data, mapped, streamed
from palate.training.resume import checkpoints, last_complete, remove_incomplete
from palate.training.settings import RunSettings
from palate.training.trainer import RewardTrainer, keep_batches_whole

SETTINGS_NAME, RUN_NAME = "run.yaml", "run.json"
Say = Callable[[str], None]


@dataclass
class FinishedRun:
    directory: Path
    trainer: RewardTrainer
    data: RunData
    metrics: dict[str, float]


def shared_prompts(data: RunData) -> int:
    """Prompts that stand in training and evaluation data alike."""
    keys = [{prompt_key(g.prompt) for g in groups or () if g.prompt} for groups in (data.train, data.evaluation)]
    return len(keys[0] & keys[1])


def build_trainer(settings: RunSettings, data: RunData, callbacks: list[Any] | None = None) -> RewardTrainer:
    model = settings.model
    given = {"revision": model.revision, "dtype": model.dtype, "attn_implementation": model.attn_implementation}
    try:
        args = RewardConfig(**settings.trainer_arguments(), model_init_kwargs={key: value for key, value in given.items() if value})
    except PalateError:
        raise
    except (ValueError, TypeError) as error:  # what transformers says of its own arguments
        raise ConfigError(f"training: {error}") from error
    if args.eval_strategy != "no" and data.evaluation is None:
        raise ConfigError(f"training.eval_strategy is {settings.training.get('eval_strategy')}, but there is no evaluation data; set data.eval")
    trainer = RewardTrainer(
        model=model.name_or_path,
        args=args,
        peft_config=adapter_config(model.adapter) if model.adapter is not None else None,
        quantization_config=quantization_config(model.quantization, getattr(torch, model.dtype)) if model.quantization else None,
        train_dataset=data.train,
        eval_dataset=data.evaluation,
        callbacks=callbacks,
        data_fingerprint=fingerprint(data.train) if data.train else None,
    )
    if settings.data.streaming:
        report = trainer.reports["train"] = EncodeReport()
        keep_batches_whole(trainer.args)
        trainer.train_dataset = trainer.with_reference(streamed(settings, trainer.encoder, report, trainer.plan.supervision))
    elif settings.data.mapped:
        encoded, trainer.reports["train"] = mapped(settings, trainer.encoder, trainer.plan)
        trainer.train_dataset = trainer.with_reference(encoded)
    return trainer


def dry_run(settings: RunSettings) -> dict[str, Any]:
    """What a run would do: counts after every filter, steps, and the first encoded pair. Trains nothing and writes nothing."""
    data = load_data(settings)
    with TemporaryDirectory() as nowhere:  # Trainer makes its output directory when it is built
        trainer = build_trainer(settings.model_copy(update={"training": {**settings.training, "output_dir": nowhere}}), data)
    row = next(iter(trainer.train_dataset))  # type: ignore[arg-type]
    # rows without a comparison (ratings, outcomes, steps) show their first response
    sides = {side: row["token_ids"][row[side][0]] for side in ("chosen", "rejected")} if row["chosen"] else {"response": row["token_ids"][0]}
    decode = trainer.processing_class.decode
    return {
        "settings": settings.model_dump(mode="json"),
        "sources": [report.as_dict() for report in data.reports],
        "encoded": {name: report.as_dict() for name, report in trainer.reports.items()},
        "learning_rate": trainer.args.learning_rate,
        "parameters": trainer.model.num_parameters(),
        "packing": trainer.engine._asdict(),
        "prompts_in_both_sets": shared_prompts(data),
        "first_pair": {side: {"ids": list(ids), "text": decode(ids)} for side, ids in sides.items()},
    }


def member_runs(settings: RunSettings, *, resume: bool = False) -> list[tuple[RunSettings, bool]]:
    """(run, whether it goes on where it stopped) of each member that `model.members` asks for and that is not finished; else the run itself.

    Members share the frozen base and nothing that is trained, so one after another is what all at once would be. Each has a seed of its own, for its start
    and the order of its data; the held-out prompts, which `data.seed` decides, are the same.
    """
    if settings.model.members is None:
        return [(settings, resume)]
    model, first = settings.model.model_copy(update={"members": None}), settings.training.get("seed", RewardConfig.seed)
    runs = []
    for member in range(settings.model.members):
        folder = member_folder(settings.training["output_dir"], member + 1)
        own = settings.model_copy(update={"model": model, "training": settings.training | {"output_dir": str(folder), "seed": first + member}})
        if not (resume and (folder / RUN_NAME).is_file()):
            runs.append((own, resume and (folder / SETTINGS_NAME).is_file()))
    return runs


def train(settings: RunSettings, *, resume: bool = False, say: Say = print) -> FinishedRun:
    """Train and save. Raises StorageError when the output directory holds another run, Interrupted after Ctrl-C (with a checkpoint)."""
    started = now()
    directory = Path(settings.training["output_dir"])
    checkpoint = guard_directory(directory, settings, resume=resume, say=say)
    data = load_data(settings)
    stop = StopOnInterrupt()
    trainer = build_trainer(settings, data, [stop])
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(TrainingBar)
    if shared := shared_prompts(data):
        say(f"Note: {shared} prompts stand in training and evaluation data alike")
    trainer.accelerator.wait_for_everyone()  # a rank that comes later must not find this run's settings and take them for another's
    if trainer.is_world_process_zero():
        write_text(directory / SETTINGS_NAME, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
    try:
        output = trainer.train(resume_from_checkpoint=checkpoint)
    finally:
        stop.restore()
    if settings.data.streaming:
        say(f"streamed: {trainer.reports['train'].summary()}")
    if stop.interrupted:
        trainer.accelerator.wait_for_everyone()  # a rank that ends early has the others ended too, and one of them is writing
        raise Interrupted(
            f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; checkpoint-{trainer.state.global_step} is saved. Go on with --resume"
        )
    save(trainer, directory, merge=settings.model.merge_adapter, say=say)
    if trainer.is_world_process_zero():
        record = run_record(trainer, data, output.metrics) | {"started": started.isoformat(timespec="seconds"), "finished": now().isoformat(timespec="seconds")}
        write_text(directory / RUN_NAME, json.dumps(record, indent=1) + "\n")
        write_model_card(directory)
    return FinishedRun(directory, trainer, data, output.metrics)


def save(trainer: RewardTrainer, directory: Path, *, merge: bool = False, say: Say = print) -> None:
    """The finished model into `directory`, whole or not at all, and loaded again to see that it scores as it did. Raises ContractError if not."""
    write = trainer.save_merged if merge else trainer.save_model
    if not trainer.is_world_process_zero():
        write(str(directory))
        return
    with whole_directory(directory) as part:
        write(str(part))
        size = sum(parameter.numel() * parameter.element_size() for parameter in trainer.model.parameters())
        if skipped := check_saved(part, size):
            say(f"Note: the saved model was not loaded again to be checked: {skipped}")


def run_record(trainer: RewardTrainer, data: RunData, metrics: dict[str, float]) -> dict[str, Any]:
    return {
        "versions": package_versions(),
        "data_fingerprint": trainer.data_fingerprint,
        "sources": [report.as_dict() for report in data.reports],
        "encoded": {name: report.as_dict() for name, report in trainer.reports.items()},
        "learning_rate": trainer.args.learning_rate,
        "packing": trainer.engine._asdict(),
        "hardware": hardware(),
        "world_size": trainer.args.world_size,
        "parameters": sum(map(whole_size, trainer.model.parameters())),
        "trained_parameters": sum(whole_size(parameter) for parameter in trainer.model.parameters() if parameter.requires_grad),
        "model_revision": getattr(trainer.model.config, "_commit_hash", None),
        "prompts_in_both_sets": shared_prompts(data),
        "metrics": metrics,
        "log_history": trainer.state.log_history,
    }


def whole_size(parameter: torch.Tensor) -> int:
    """Numbers in a parameter, whatever part of it lies on this rank (DeepSpeed ZeRO-3 leaves none here and notes the whole)."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def now() -> datetime:
    return datetime.now(UTC)


def hardware() -> dict[str, Any]:
    """The devices of this process: what they are called and how many there are."""
    if torch.cuda.is_available():
        return {"device": "cuda", "name": torch.cuda.get_device_name(), "count": torch.cuda.device_count()}
    return {"device": "cpu", "name": platform.processor() or platform.machine(), "count": os.cpu_count()}


STEP_SETTINGS = ("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed")
"""Fields of the training section that say which rows a step sees."""


def guard_directory(directory: Path, settings: RunSettings, *, resume: bool, say: Say = print) -> str | None:
    """The checkpoint to go on from. Raises StorageError when the directory holds another run, or none to resume."""
    occupied = directory.is_dir() and any((directory / name).exists() for name in (SETTINGS_NAME, RUN_NAME, "config.json", "adapter_config.json"))
    if directory.exists() and not directory.is_dir():
        raise StorageError(f"{directory}: is a file; training.output_dir must be a folder")
    if not resume:
        if occupied or (directory.is_dir() and checkpoints(directory)):
            raise StorageError(f"{directory}: holds another run; choose another training.output_dir, or go on with it by --resume")
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{directory}: cannot be created: {error}") from error
        return None
    if not (directory / SETTINGS_NAME).is_file():
        raise StorageError(f"{directory}: holds no run to resume ({SETTINGS_NAME} is not there); leave out --resume")
    if (directory / RUN_NAME).exists():
        raise StorageError(f"{directory}: this run is finished; choose another training.output_dir to train again")
    before = yaml.safe_load((directory / SETTINGS_NAME).read_text(encoding="utf-8"))
    now = settings.model_dump(mode="json")
    changed = [section for section in ("model", "data", "loss") if before.get(section) != now[section]]
    if changed:
        raise StorageError(f"{directory}: the interrupted run had another {' and '.join(changed)} section (see {SETTINGS_NAME}); resume with the same settings")
    if changed := [key for key in STEP_SETTINGS if (before.get("training") or {}).get(key) != settings.training.get(key)]:
        raise StorageError(f"{directory}: the interrupted run had another training.{' and '.join(changed)}: it would go on at other rows; resume with the same")
    whole = last_complete(directory)
    if os.environ.get("RANK", "0") == "0":  # the other ranks look past them
        for broken in remove_incomplete(directory):
            say(f"Note: {broken.name} was not written whole and is removed")
        if whole is None:
            say("Note: there is no whole checkpoint; the run begins anew")
    return str(whole) if whole else None
