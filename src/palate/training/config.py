"""RewardConfig: transformers.TrainingArguments with the fields of a reward model, under TRL's names. Each default names its source."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from transformers import TrainingArguments

from palate.data.tokenization import DEFAULT_SEPARATOR, LENGTH_POLICIES
from palate.errors import ConfigError
from palate.training.loss_settings import LossSettings, explain
from palate.types import PACKINGS

FULL_LEARNING_RATES = (
    (200e6, 5e-5),  # encoders and tiny models: BERT's fine-tuning range (arXiv 1810.04805, appendix A.3)
    (2e9, 1e-5),  # trl-lib/Qwen2-0.5B-Reward; Llama 2 below 70B (arXiv 2307.09288, section 3.2.2)
    (5e9, 5e-6),  # between the two neighbours
    (float("inf"), 3e-6),  # Tulu 3 8B (arXiv 2411.15124); RewardBench 2's sweep over 8B models prefers it too
)
"""Full fine-tuning: (fewer parameters than, learning rate)."""

LORA_LEARNING_RATE = 1e-4
"""LoRA: TRL's and LLaMA-Factory's value, about ten times that of full fine-tuning."""


@dataclass
class RewardConfig(TrainingArguments):
    """Arguments of `RewardTrainer`: all of `transformers.TrainingArguments`, and these. Code written for TRL's RewardConfig runs unchanged.

    Every field has its help text, and where a default differs from TrainingArguments or TRL, its reason.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs", "loss"]  # noqa: RUF012 (as the base class declares it)

    # --- defaults of TrainingArguments that reward models want otherwise ---
    num_train_epochs: float = field(
        default=1.0,
        metadata={"help": "Epochs. One: a second pass over-fits (InstructGPT, arXiv 2203.02155, app. C.2; Llama 2, section 3.2.2)."},
    )
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None,
        metadata={
            "help": "Peak learning rate. Unset: 1e-4 with LoRA; for full fine-tuning 5e-5 below 0.2B parameters, 1e-5 below 2B, 5e-6 below 5B, 3e-6 above."
        },
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps (below 1: a share of all steps)."})

    # --- model ---
    model_init_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Keyword arguments of from_pretrained, where the model is given by name (JSON on the command line)."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow a model's own code from the hub to run."})
    disable_dropout: bool = field(
        default=True, metadata={"help": "Turn dropout off, so that both sides of a pair see the same network (Ziegler et al., arXiv 1909.08593)."}
    )

    # --- text and tokens ---
    chat_template_path: str | None = field(default=None, metadata={"help": "A .jinja file, a template, or `plain`; replaces the tokenizer's chat template."})
    eos_token: str | None = field(default=None, metadata={"help": "Token that ends every response. Unset: the tokenizer's EOS (encoders: SEP)."})
    pad_token: str | None = field(default=None, metadata={"help": "Padding token, never EOS. Unset: the tokenizer's, or a new one where that is EOS."})
    max_length: int | None = field(default=1024, metadata={"help": "Most tokens of prompt plus response (TRL's default). See length_policy."})
    length_policy: str = field(
        default="drop",
        metadata={"help": "Pairs beyond max_length: `drop` (counted; TRL's rule), `truncate_prompt` (cut the prompt's start, never the response), `error`."},
    )
    prompt_separator: str = field(
        default=DEFAULT_SEPARATOR,
        metadata={"help": "Put between a plain-text prompt and response where neither has a blank at the joint; an empty string gives TRL's bare joining."},
    )
    pad_to_multiple_of: int | str | None = field(
        default=None, metadata={"help": "Pad rows to a multiple of this many tokens (8 or 64 suits tensor cores). `auto` means none."}
    )

    packing: str = field(
        default="auto",
        metadata={
            "help": "How a batch is computed: `shared` (rows of trees, each prompt once), `packed` (rows of whole sequences), `padded`, or `auto`: the "
            "fastest that is exact for the model."
        },
    )
    token_budget: int | None = field(
        default=None,
        metadata={"help": "Tokens computed at a time; a larger batch is cut into parts, never changed. Unset: 16384, and 2048 on a CPU."},
    )

    # --- data ---
    dataset_num_proc: int | None = field(default=None, metadata={"help": "Processes that tokenize a `datasets` object."})
    on_bad_row: str = field(
        default="error", metadata={"help": "Rows that cannot be used (empty, identical, broken): `error` names them all, `drop` counts and leaves them."}
    )
    ties: str = field(default="drop", metadata={"help": "Tied comparisons: `drop` (InstructGPT) or `soft` (train the pair towards probability 0.5)."})

    off_topic_negatives: int = field(
        default=0, metadata={"help": "Responses to other prompts added to each training prompt as worse than its best (RRM, arXiv 2409.13156)."}
    )

    # --- loss ---
    loss: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "The whole loss section as a dictionary (docs/losses.md); in place of the four fields below (JSON on the command line)."},
    )
    loss_type: str = field(default="bradley_terry", metadata={"help": "Any loss type of docs/losses.md that needs no option."})
    use_margins: bool = field(default=True, metadata={"help": "Subtract the margin column in the loss (Llama 2, eq. 2); rows without one have 0."})
    label_smoothing: float = field(default=0.0, metadata={"help": "Chance that a label is flipped, in [0, 0.5) (cDPO)."})
    center_rewards_coefficient: float | None = field(
        default=None, metadata={"help": "Weight of (r_chosen + r_rejected)^2; 0.01 is recommended (arXiv 2312.09244)."}
    )

    # --- running ---
    activation_offloading: bool = field(default=False, metadata={"help": "Keep activations for the backward pass in CPU memory."})
    num_print_samples: int = field(default=0, metadata={"help": "At each evaluation print a table of so many pairs with their rewards (0: none)."})

    def __post_init__(self) -> None:
        if self.length_policy not in LENGTH_POLICIES:
            raise ConfigError(f"length_policy is {self.length_policy!r}, expected one of {', '.join(LENGTH_POLICIES)}")
        for name, allowed in (("on_bad_row", ("error", "drop")), ("ties", ("drop", "soft"))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        if self.packing not in PACKINGS:
            raise ConfigError(f"packing is {self.packing!r}, expected one of {', '.join(PACKINGS)}")
        if self.token_budget is not None and self.token_budget < 1:
            raise ConfigError(f"token_budget is {self.token_budget}, expected at least 1")
        if self.pad_to_multiple_of == "auto":
            self.pad_to_multiple_of = None
        if isinstance(self.pad_to_multiple_of, str):
            self.pad_to_multiple_of = int(self.pad_to_multiple_of)
        super().__post_init__()
        if self.torch_compile:
            # accelerate reads these: one layer is compiled and serves all, for rows of any length
            os.environ.setdefault("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
            os.environ.setdefault("ACCELERATE_DYNAMO_USE_DYNAMIC", "true")

    def loss_settings(self) -> LossSettings:
        """The loss section, or what TRL's fields say of it. Raises ConfigError when they do not fit together."""
        simple = {"type": self.loss_type, "margins": None if self.use_margins else "none", "centering": self.center_rewards_coefficient or 0.0}
        if self.label_smoothing:
            simple["label_smoothing"] = self.label_smoothing
        if self.loss is not None and simple != {"type": "bradley_terry", "margins": None, "centering": 0.0}:
            raise ConfigError("loss is given beside loss_type, use_margins, label_smoothing or center_rewards_coefficient; say it once, in loss")
        try:
            return LossSettings.model_validate(simple if self.loss is None else self.loss)
        except ValidationError as error:
            short = self.loss is None or (isinstance(self.loss, dict) and "terms" not in self.loss)
            raise ConfigError("\n".join(explain(problem, short=short) for problem in error.errors())) from error

    def resolved_learning_rate(self, num_parameters: int, *, lora: bool) -> float:
        """The given learning rate, or the default for a model of this size."""
        if self.learning_rate is not None:
            return self.learning_rate
        if lora:
            return LORA_LEARNING_RATE
        return next(rate for limit, rate in FULL_LEARNING_RATES if num_parameters < limit)
