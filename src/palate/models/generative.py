"""A causal language model read in two ways: the log-odds of label tokens that follow a prompt, and text that is drawn from it, many prompts at once.

N prompts, L tokens, V vocabulary. A prompt is plain text, or chat messages; where those end with an assistant's, that message is gone on with.
Source: the label as next token is GenRM's verdict (Zhang et al. 2024, arXiv 2408.15240) and RLHFlow's pair-preference model
(Dong et al. 2024, arXiv 2405.07863).
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import jinja2
import numpy as np
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from palate.errors import ConfigError, DataError, ModelError
from palate.models.reward_model import check_local, load_tokenizer
from palate.types import Message

Prompt: TypeAlias = str | Sequence[Message]

BATCH = 8  # prompts computed together; per-device batch size of transformers' TrainingArguments

ANSWER = "\ue000palate-answer\ue000"
"""Stands where an answer would begin while a template is rendered, to find that place; private-use characters, which no text has."""

NO_ARGS: Mapping[str, Any] = {}


# --- prompts --------------------------------------------------------------------------------------------------------------------------------------


def answer_start(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, template_args: Mapping[str, Any] = NO_ARGS) -> str:
    """The text up to the first character of the answer, as the chat template writes an assistant's turn (and as SFT on such turns has seen it).

    That is more than the generation prompt for templates that put something in front of an answer, such as Qwen3's empty thought.
    """
    if isinstance(prompt, str):
        return prompt
    messages = [dict(message) for message in prompt]
    if messages and messages[-1].get("role") == "assistant":
        messages[-1]["content"] = f"{messages[-1]['content']}{ANSWER}"
    else:
        messages.append({"role": "assistant", "content": ANSWER})
    text = rendered(tokenizer, messages, template_args)
    at = text.rfind(ANSWER)
    if at < 0:
        raise ModelError(f"the chat template of {tokenizer.name_or_path!r} leaves the content of an assistant's message out; use another template")
    return text[:at]


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], template_args: Mapping[str, Any] = NO_ARGS, *, answer: bool = False) -> str:
    """Messages through the chat template; `answer` asks for the generation prompt."""
    if not tokenizer.chat_template:
        raise ModelError(f"the tokenizer of {tokenizer.name_or_path!r} has no chat template; set tokenizer.chat_template (an instruct model has one)")
    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=answer,
            **template_args,
        )
    except jinja2.TemplateError as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise ModelError(f"the chat template of {tokenizer.name_or_path!r} refuses messages of the roles {roles}: {error}") from error
    return str(text)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str, *, framed: bool) -> list[int]:
    """Token ids. `framed`: plain text, which gets the BOS that its tokenizer puts; a template writes what it wants itself (as `apply_chat_template`)."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if not framed or (tokenizer.bos_token and text.startswith(str(tokenizer.bos_token))):
        return ids
    probe, whole = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    return [*whole[: whole.index(probe[0])], *ids]


# --- labels ---------------------------------------------------------------------------------------------------------------------------------------


class LabelPrompt(NamedTuple):
    """What the model reads, and the token of each label that may come next."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


class LabelLogprobs(NamedTuple):
    """Log-probabilities of each label as next token [N, labels], and the probability of everything that is no label [N]."""

    labels: tuple[str, ...]
    logprobs: np.ndarray
    missing_mass: np.ndarray

    def log_odds(self, label: str, against: str) -> np.ndarray:
        """log P(label) - log P(against) [N]."""
        return self.logprobs[:, self.labels.index(label)] - self.logprobs[:, self.labels.index(against)]


def label_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, labels: Sequence[str], template_args: Mapping[str, Any] = NO_ARGS) -> LabelPrompt:
    """One token for each label, found in context: prompt + label is tokenized, and what is read is where the labels part.

    That place is the end of the prompt, or the last token before it where a label takes the prompt's last blank into its token ("Verdict: " + "A" is
    "Verdict:", "ĠA"); TRL's SFTTrainer begins a completion by the same rule. Raises ConfigError, with the tokens, for a label of several tokens and
    for labels with the same first one.
    """
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(labels):
        raise ConfigError(f"labels {list(labels)}, expected two or more different ones, none empty")
    framed = isinstance(prompt, str)
    text = answer_start(tokenizer, prompt, template_args)
    alone = encode_text(tokenizer, text, framed=framed)
    found = [encode_text(tokenizer, text + label, framed=framed) for label in labels]
    shared = _common_prefix(found)
    if shared > len(alone) or found[0][:shared] != alone[:shared]:
        raise ConfigError(f"the labels begin with the same token after {_end(text)}: {_tokens(tokenizer, labels, found, shared - 1)}; choose other labels")
    if any(len(ids) != shared + 1 for ids in found):
        raise ConfigError(f"each label must be one token after {_end(text)}, found {_tokens(tokenizer, labels, found, shared)}; choose shorter labels")
    if not shared:
        raise ConfigError(f"nothing stands before the labels {list(labels)}: the prompt {prompt!r} is empty")
    return LabelPrompt(tuple(found[0][:shared]), tuple(ids[shared] for ids in found))


def _common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    shortest = min(map(len, sequences))
    return next((i for i in range(shortest) if any(ids[i] != sequences[0][i] for ids in sequences)), shortest)


def _tokens(tokenizer: PreTrainedTokenizerBase, labels: Sequence[str], found: Sequence[Sequence[int]], start: int) -> str:
    return ", ".join(f"{label!r} as {tokenizer.convert_ids_to_tokens(list(ids[start:]))}" for label, ids in zip(labels, found, strict=True))


def _end(text: str) -> str:
    return repr(text[-20:])


def label_logits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    labels: Sequence[str],
    *,
    template_args: Mapping[str, Any] = NO_ARGS,
    batch_size: int = BATCH,
) -> LabelLogprobs:
    """Log-probability of each label as the next token of each prompt, over the whole vocabulary."""
    encoded = [label_prompt(tokenizer, prompt, labels, template_args) for prompt in prompts]
    return read_labels(model, encoded, labels, batch_size=batch_size)


@torch.inference_mode()
def read_labels(model: PreTrainedModel, prompts: Sequence[LabelPrompt], labels: Sequence[str], *, batch_size: int = BATCH) -> LabelLogprobs:
    """The same for prompts that are encoded already; equal ones are computed once, so that they tie."""
    logprobs = np.empty((len(prompts), len(labels)), dtype=np.float32)
    same: dict[LabelPrompt, list[int]] = {}
    for i, prompt in enumerate(prompts):
        same.setdefault(prompt, []).append(i)
    distinct = sorted(same, key=lambda prompt: -len(prompt.ids))
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        for prompt, values in zip(batch, _label_logprobs(model, batch), strict=True):
            logprobs[same[prompt]] = values
    total = np.exp(logprobs.astype(np.float64)).sum(axis=1)
    return LabelLogprobs(tuple(labels), logprobs, np.maximum(0.0, 1 - total))


def _label_logprobs(model: Any, batch: Sequence[LabelPrompt]) -> np.ndarray:
    """[N, labels] of one batch, padded on the right, where no causal model sees it; logits are made at the last tokens alone ([N, V] each)."""
    ends = torch.tensor([len(prompt.ids) - 1 for prompt in batch])
    input_ids, mask = torch.zeros((2, len(batch), int(ends.max()) + 1), dtype=torch.long)
    for row, prompt in enumerate(batch):
        input_ids[row, : len(prompt.ids)] = torch.tensor(prompt.ids)
        mask[row, : len(prompt.ids)] = 1
    read, place = ends.unique(return_inverse=True)
    device = model.device
    logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False, logits_to_keep=read.to(device)).logits
    last = logits[torch.arange(len(batch)), place].float()  # 16-bit log-softmax is off by a tenth
    labels = torch.tensor([prompt.labels for prompt in batch], device=device)
    return log_softmax(last, dim=-1).gather(1, labels).cpu().numpy()


class LabelFeatures(NamedTuple):
    features: list[dict[str, Any]]  # input_ids, label_ids, targets, weight: what `data.label_tokens.LabelCollator` takes
    too_long: int


def label_features(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
    *,
    max_length: int | None = None,
    template_args: Mapping[str, Any] = NO_ARGS,
) -> LabelFeatures:
    """Rows of `data.generative_rows` for training on their probabilities; what a row says before its label is read, not learned.

    `labels`: those that the prompts offer, the one that `probability` is of first. A third one takes the rows whose label it is. Rows of more than
    `max_length` tokens are left out and counted. Raises DataError for a row whose label is none of them.
    """
    features, too_long = [], 0
    for n, row in enumerate(rows):
        if row["label"] not in labels:
            raise DataError(
                f"row {n + 1}: its label {row['label']!r} is none of {list(labels)}; give the labels that the prompts offer, that of `probability` first"
            )
        said = str(row["completion"][0]["content"]).removesuffix(row["label"])
        prompt = [*row["prompt"], {"role": "assistant", "content": said}] if said else row["prompt"]
        found = label_prompt(tokenizer, prompt, labels, template_args)
        if max_length is not None and len(found.ids) >= max_length:  # the label is a token too
            too_long += 1
            continue
        p = float(row["probability"])
        targets = [float(label == row["label"]) for label in labels] if row["label"] in labels[2:] else [p, 1 - p, *[0.0] * (len(labels) - 2)]
        features.append({"input_ids": list(found.ids), "label_ids": list(found.labels), "targets": targets, "weight": float(row["weight"])})
    return LabelFeatures(features, too_long)


# --- text -----------------------------------------------------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """One text to be drawn. Temperature 0 takes the likeliest token; the seed belongs to this text, whatever else is in its batch."""

    ids: tuple[int, ...]  # of the prompt
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0  # likeliest tokens to report at each place


class Drawn(NamedTuple):
    """A text without its end token and stop string; `ids` and `top_logprobs` (by the tokenizer's names, natural logarithms, temperature 1) have both."""

    text: str
    finish_reason: str  # stop: an end token or a stop string; length: max_tokens
    ids: tuple[int, ...]
    top_logprobs: tuple[Mapping[str, float], ...] = ()


@dataclass
class _Row:
    draw: Draw
    tokenizer: Any
    ends: frozenset[int]
    ids: list[int] = field(default_factory=list)
    top: list[dict[str, float]] = field(default_factory=list)
    text: str = ""
    reason: str = ""  # empty while it goes on

    def __post_init__(self) -> None:
        self.random = random.Random(self.draw.seed)

    def take(self, token: int, logprobs: torch.Tensor | None) -> None:
        if self.reason:
            return
        self.ids.append(token)
        if logprobs is not None and self.draw.top_logprobs:
            values, found = logprobs.topk(min(self.draw.top_logprobs, len(logprobs)))
            names = self.tokenizer.convert_ids_to_tokens(found.tolist())
            named = [name if name is not None else f"<{i}>" for name, i in zip(names, found.tolist(), strict=True)]  # rows beyond the vocabulary
            self.top.append(dict(zip(named, values.tolist(), strict=True)))
        if token in self.ends:
            self._finish("stop", self._decoded(self.ids[:-1]))
            return
        text = self._decoded(self.ids) if self.draw.stop else ""
        cuts = [at for stop in self.draw.stop if (at := text.find(stop)) >= 0]
        if cuts:
            self._finish("stop", text[: min(cuts)])
        elif len(self.ids) >= self.draw.max_tokens:
            self._finish("length", self._decoded(self.ids))

    def _finish(self, reason: str, text: str) -> None:
        self.reason, self.text = reason, text

    def _decoded(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@torch.inference_mode()
def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, draws: Sequence[Draw]) -> list[Drawn]:
    """All draws as one batch, padded on the left; each has its own temperature, top_p, seed, length and stop strings.

    A draw's random numbers do not depend on its neighbours; its logits do by their last bits, as every batched computation's, so a text can differ from
    the one drawn alone where a random number falls within 1e-6 (float32) of the border between two tokens.
    """
    for draw in draws:
        _check_draw(draw)
    if not draws:
        return []
    ends = end_ids(model, tokenizer)
    rows = [_Row(draw, tokenizer, ends) for draw in draws]
    ids, mask = torch.zeros((2, len(draws), max(len(draw.ids) for draw in draws)), dtype=torch.long)
    for i, draw in enumerate(draws):
        ids[i, -len(draw.ids) :] = torch.tensor(draw.ids)
        mask[i, -len(draw.ids) :] = 1
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions, cache = (mask.cumsum(dim=1) - 1).clamp(min=0), None
    while True:
        out: Any = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits, cache = out.logits[:, -1].float(), out.past_key_values  # [N, V]
        chosen = choose_tokens(logits, draws, [row.random.random() for row in rows])
        logprobs = log_softmax(logits, dim=-1).cpu() if any(draw.top_logprobs for draw in draws) else None
        for i, (row, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
            row.take(token, None if logprobs is None else logprobs[i])
        if all(row.reason for row in rows):
            return [Drawn(row.text, row.reason, tuple(row.ids), tuple(row.top)) for row in rows]
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)


def choose_tokens(logits: torch.Tensor, draws: Sequence[Draw], uniforms: Sequence[float]) -> torch.Tensor:
    """The next token of each row [N, V] -> [N]: the likeliest at temperature 0, else the one whose share of [0, 1), in order of ids, holds its number.

    `top_p` keeps the likeliest tokens up to the first whose sum reaches it (Holtzman et al. 2020, arXiv 1904.09751, section 3.1).
    """
    greedy = logits.argmax(dim=-1)
    if all(draw.temperature == 0 for draw in draws):
        return greedy
    temperature = torch.tensor([draw.temperature or 1.0 for draw in draws], dtype=torch.float64, device=logits.device)
    p = (logits.double() / temperature[:, None]).softmax(dim=-1)
    if any(draw.top_p < 1 for draw in draws):
        ordered, order = p.sort(dim=-1, descending=True)
        limit = torch.tensor([draw.top_p if draw.top_p < 1 else 2.0 for draw in draws], dtype=torch.float64, device=logits.device)
        outside = ordered.cumsum(dim=-1) - ordered >= limit[:, None]
        p = p.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), 0.0)
    cumulative = p.cumsum(dim=-1)
    target = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    cold = torch.tensor([draw.temperature == 0 for draw in draws], device=logits.device)
    return torch.where(cold, greedy, drawn)


def _check_draw(draw: Draw) -> None:
    if not draw.ids:
        raise DataError("the prompt has no token; nothing can be drawn after it")
    if draw.max_tokens < 1 or draw.temperature < 0 or not 0 < draw.top_p <= 1:
        raise ConfigError(
            f"max_tokens={draw.max_tokens}, temperature={draw.temperature}, top_p={draw.top_p}; expected at least 1, at least 0, above 0 and up to 1"
        )


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end a text: the model's own, of its generation config, and the tokenizer's EOS."""
    config: Any = model.generation_config
    own = config.eos_token_id if config is not None else None
    return frozenset(token for token in (*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id) if token is not None)


# --- models ---------------------------------------------------------------------------------------------------------------------------------------


def context_length(model: PreTrainedModel) -> int | None:
    """Tokens that prompt and answer may have together, as the config says; None where it does not."""
    found = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(found) if found else None


def load_causal_model(name: str, *, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """A causal language model by folder or hub id. Raises ModelError for one that is none: a reward model, or weights without a head."""
    check_local(name)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ModelError(f"{name}: cannot be loaded as a language model: {error}") from error
    model, info = loaded
    missing = sorted(map(str, info["missing_keys"]))
    if missing or any(str(kind).endswith("ForSequenceClassification") for kind in model.config.architectures or []):
        problem = f"weights are missing for {', '.join(missing[:5])}" if missing else f"it is a {model.config.architectures[0]}"
        raise ModelError(f"{name}: no language model: {problem}; give a model that predicts tokens")
    return model


def load_language_model(
    name: str, *, dtype: torch.dtype | str = "auto", device: str | torch.device | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The same with its tokenizer, on this process's GPU if there is one."""
    gpu = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    model: Any = load_causal_model(name, dtype=dtype)
    return model.to(device or gpu).eval(), load_tokenizer(name)


FINGERPRINTED = 16  # values of each parameter: two trainings that agree in all of them are one


def model_fingerprint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Eight hex digits of what decides an answer: the first values of every parameter, their type, and the chat template."""
    digest = hashlib.sha256(str(tokenizer.chat_template).encode())
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()[:FINGERPRINTED].double().tolist()
        digest.update(repr((name, tuple(parameter.shape), str(parameter.dtype), values)).encode())
    return digest.hexdigest()[:8]
