"""A language model in this process as a reward model or a judge: the log-odds of the label that it would say next, after a critique if one is asked for.

GenerativeScorer is after GenRM (Zhang et al. 2024, arXiv 2408.15240), whose score is P(Yes), after critiques its mean. Here r = log P(Yes) - log P(No), the
mean of which over critiques is the reward: log-odds have no ceiling and do not depend on what else the model might say. PairwiseLogitJudge is RLHFlow's
pair-preference model (Dong et al. 2024, arXiv 2405.07863): log P(A) - log P(B) in the order shown, which `BothOrders` averages over both orders (RLHFlow
averages probabilities). Prompts are those of the training rows (`palate.data.generative_rows`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from palate.data.generative_rows import BETTER, GOOD, NO, TIE, VERDICT, YES, A, B, pair_messages, point_messages
from palate.data.tokenization import as_exchange
from palate.errors import ConfigError, DataError
from palate.models.generative import (
    BATCH,
    NO_ARGS,
    Draw,
    LabelPrompt,
    context_length,
    encode_text,
    generate,
    label_prompt,
    load_language_model,
    read_labels,
    rendered,
)
from palate.scoring.local import own_device
from palate.types import Conversation, Exchange, Matchup, Message, Verdict, text_of

CRITIQUE_TOKENS = 512  # our choice: some paragraphs; a longer critique is cut, and counted


@dataclass(frozen=True)
class Critiques:
    """What is written before the label: `samples` texts, whose log-odds are averaged. Greedy by default, which is one text however often it is drawn."""

    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = CRITIQUE_TOKENS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"{self}: expected samples and max_tokens of 1 at least, a temperature of 0 at least, and top_p above 0 and up to 1")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(f"{self.samples} critiques at temperature 0 would be one text {self.samples} times; give a temperature above 0, or one sample")


class Reading(NamedTuple):
    """What was read after one prompt: logprobs [labels], the mean over its critiques; or why nothing was."""

    logprobs: np.ndarray
    logit: float  # log-odds of the first label over the second, the mean over its critiques
    missing_mass: float
    critiques: tuple[str, ...] = ()
    cut: int = 0  # critiques that ended at max_tokens
    problem: str = ""


class LabelReader:
    """Reads labels after prompts with one model; what scorer and judge share."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
        *,
        critiques: Critiques | None = None,
        max_length: int | None = None,
        batch_size: int = BATCH,
        template_args: Mapping[str, Any] = NO_ARGS,
        device: str | torch.device | None = None,
    ):
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size}, expected at least 1")
        self.device = torch.device(device or own_device())
        self.model = model.to(self.device).eval()  # type: ignore[arg-type]
        self.tokenizer, self.labels, self.critiques = tokenizer, tuple(labels), critiques
        limits = [limit for limit in (max_length, context_length(model)) if limit is not None]
        self.max_length = min(limits, default=None)
        self.batch_size, self.template_args = batch_size, template_args

    def read(self, prompts: Sequence[Sequence[Message]], *, progress: bool = False) -> list[Reading]:
        """One reading a prompt, in order; one that is too long has a problem instead."""
        asked = [list(prompt) for prompt in prompts]
        if self.critiques is None:
            encoded = [label_prompt(self.tokenizer, prompt, self.labels, self.template_args) for prompt in asked]
            return self._read(encoded, [("", "stop")] * len(asked), 1, progress)
        written = self._write(asked, self.critiques, progress)
        k = self.critiques.samples
        continued = [[*asked[i // k], {"role": "assistant", "content": f"{text.strip()}{VERDICT}"}] for i, (text, _) in enumerate(written)]
        return self._read([label_prompt(self.tokenizer, one, self.labels, self.template_args) for one in continued], written, k, progress)

    def _read(self, prompts: Sequence[LabelPrompt], written: Sequence[tuple[str, str]], k: int, progress: bool) -> list[Reading]:
        """k prompts a reading, each after a (critique, finish reason) of its own."""
        fitting = [i for i, prompt in enumerate(prompts) if self.max_length is None or len(prompt.ids) <= self.max_length]
        logprobs = np.full((len(prompts), len(self.labels)), np.nan, dtype=np.float32)
        missing = np.full(len(prompts), np.nan)
        with tqdm(total=len(fitting), desc="reading labels", unit="prompt", disable=not progress) as bar:
            order = sorted(fitting, key=lambda i: -len(prompts[i].ids))
            step = 8 * self.batch_size  # equal prompts stand together and are computed once
            for start in range(0, len(order), step):
                part = order[start : start + step]
                found = read_labels(self.model, [prompts[i] for i in part], self.labels, batch_size=self.batch_size)
                logprobs[part], missing[part] = found.logprobs, found.missing_mass
                bar.update(len(part))
        return [self._reading(slice(start, start + k), prompts, written, logprobs, missing) for start in range(0, len(prompts), k)]

    def _reading(self, own: slice, prompts: Sequence[LabelPrompt], written: Sequence[tuple[str, str]], logprobs: np.ndarray, missing: np.ndarray) -> Reading:
        mean = logprobs[own].mean(axis=0)
        logit = float((logprobs[own, 0] - logprobs[own, 1]).mean())
        longest = max(len(prompt.ids) for prompt in prompts[own])
        problem = f"has {longest} tokens as a prompt, the limit is {self.max_length}" if np.isnan(logit) else ""
        texts = tuple(text for text, _ in written[own]) if self.critiques else ()
        return Reading(mean, logit, float(missing[own].mean()), texts, sum(reason == "length" for _, reason in written[own]), problem)

    def _write(self, prompts: Sequence[Sequence[Message]], told: Critiques, progress: bool) -> list[tuple[str, str]]:
        """(critique, finish reason), k a prompt; a prompt that leaves no room for one gets an empty text and is found too long by the label."""
        ids = [encode_text(self.tokenizer, rendered(self.tokenizer, prompt, self.template_args, answer=True), framed=False) for prompt in prompts]
        draws: dict[int, Draw] = {}
        for i, prompt in enumerate(ids):
            room = told.max_tokens if self.max_length is None else min(told.max_tokens, self.max_length - len(prompt) - VERDICT_ROOM)
            for sample in range(told.samples if room > 0 else 0):
                seed = told.seed * SEEDS + sample
                stop = (VERDICT.strip(),)
                draws[i * told.samples + sample] = Draw(tuple(prompt), room, told.temperature, told.top_p, seed, stop)
        written = [("", "stop")] * (len(prompts) * told.samples)
        order = sorted(draws, key=lambda i: -len(draws[i].ids))
        for start in tqdm(range(0, len(order), self.batch_size), desc="writing critiques", unit="batch", disable=not progress):
            part = order[start : start + self.batch_size]
            for i, drawn in zip(part, generate(self.model, self.tokenizer, [draws[i] for i in part]), strict=True):
                written[i] = (drawn.text, drawn.finish_reason)
        return written


VERDICT_ROOM = 32  # tokens left for "Verdict:" and what the template puts around an answer; Qwen3's empty thought and end of turn are 7
SEEDS = 1_000_003  # a prime: samples of one seed are not those of the next


class GenerativeScorer:
    """Rewards log P(Yes) - log P(No) of the answer to `question` about a response. The higher, the surer the model is that the response is good.

    `labels`: the good one first. With `critiques` the model writes before it answers. `template_args` go to the chat template. The template's own
    variables of an exchange (tools) are not shown.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        question: str = GOOD,
        labels: Sequence[str] = (YES, NO),
        critiques: Critiques | None = None,
        on_long: str = "error",
        **options: Any,
    ):
        self.reader = LabelReader(model, tokenizer, labels, critiques=critiques, **options)
        self.question, self.on_long = question, on_long

    def score(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> np.ndarray:
        """Rewards float32 [N]; on_long="nan" gives NaN for a prompt beyond the limit, anything else raises DataError."""
        return self.score_detailed(conversations, progress=progress, on_long=on_long)[0]

    def score_detailed(
        self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(rewards, {probability, missing_mass, critiques, cut} of each): P(Yes) of the two labels, the mass on no label, what was written before."""
        exchanges = [as_exchange(item) for item in conversations]
        readings = self.reader.read([self.messages(exchange) for exchange in exchanges], progress=progress)
        for i, reading in enumerate(readings):
            if reading.problem and (on_long or self.on_long) != "nan":
                raise DataError(f'conversation {i} {reading.problem}; shorten it, or pass on_long="nan"')
        rewards = np.array([reading.logit for reading in readings], dtype=np.float32)
        return rewards, [_details(reading) for reading in readings]

    def identity(self) -> dict[str, Any]:
        """What decides its rewards beside the weights: the wording of the question, labels, critiques, the chat template, the limit, the precision."""
        reader = self.reader
        return {
            "asked": self.messages(Exchange("prompt", "response")),
            "labels": reader.labels,
            "critiques": asdict(reader.critiques) if reader.critiques else None,
            "template": hashlib.sha256(str(reader.tokenizer.chat_template).encode()).hexdigest(),
            "template_args": dict(reader.template_args),
            "max_length": reader.max_length,
            "dtype": str(reader.model.dtype),
        }

    def messages(self, exchange: Exchange) -> tuple[Message, ...]:
        """What the model is asked about one exchange."""
        reader = self.reader
        return point_messages(exchange.prompt, exchange.response, question=self.question, labels=reader.labels, reasons=reader.critiques is not None)


def _details(reading: Reading) -> dict[str, Any]:
    found: dict[str, Any] = {"probability": _sigmoid(reading.logit), "missing_mass": reading.missing_mass}
    return found | ({"critiques": reading.critiques, "cut": reading.cut} if reading.critiques else {})


class PairwiseLogitJudge:
    """A Judge by the letters' log-odds in the order shown. `ties`: a third letter, C, is offered; half of its probability counts for each side.

    `references` are right answers to judge by, by the text of the prompt (`text_of`); as with ChatJudge, a call may bring its own. It sees one order;
    `palate.judging.combining.BothOrders` asks for both and averages the log-odds, which takes the position's share out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        question: str = BETTER,
        ties: bool = False,
        critiques: Critiques | None = None,
        references: Mapping[str, Conversation] | None = None,
        **options: Any,
    ):
        self.reader = LabelReader(model, tokenizer, (A, B, TIE) if ties else (A, B), critiques=critiques, **options)
        self.question, self.references = question, dict(references or {})

    def compare(self, matchups: Sequence[Matchup], *, references: Sequence[Conversation | None] | None = None) -> list[Verdict]:
        """One verdict a matchup; a pair that does not fit is invalid. `references`: one a matchup, or None, in place of the judge's own."""
        if references is not None and len(references) != len(matchups):
            raise ConfigError(f"{len(matchups)} matchups and {len(references)} references; give one each, or None where there is none")
        known = references if references is not None else [self.references.get(text_of(matchup.prompt)) for matchup in matchups]
        prompts = [self.messages(matchup, reference) for matchup, reference in zip(matchups, known, strict=True)]
        return [_verdict(reading) for reading in self.reader.read(prompts)]

    def messages(self, matchup: Matchup, reference: Conversation | None = None) -> tuple[Message, ...]:
        """What the model is asked about one matchup."""
        labels, reasons = self.reader.labels, self.reader.critiques is not None
        return pair_messages(matchup.prompt, matchup.a, matchup.b, question=self.question, labels=labels, reasons=reasons, reference=reference)


def _verdict(reading: Reading) -> Verdict:
    raw = "\n\n".join(reading.critiques)
    if reading.problem:
        return Verdict("invalid", None, f"the pair {reading.problem}", raw)
    a, b, tie = (*np.exp(reading.logprobs.astype(np.float64) - float(reading.logprobs.max())), 0.0)[:3]
    if tie > max(a, b) or reading.logit == 0:
        return Verdict("tie", float((a + tie / 2) / (a + b + tie)), raw=raw, logit=reading.logit)
    probability = float((a + tie / 2) / (a + b + tie))
    return Verdict("a" if reading.logit > 0 else "b", probability, raw=raw, logit=reading.logit)


def _sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


def load_generative_scorer(name: str, *, dtype: torch.dtype | str = "auto", **options: Any) -> GenerativeScorer:
    """A GenerativeScorer by folder or hub id."""
    return GenerativeScorer(*load_language_model(name, dtype=dtype), **options)


def load_pairwise_judge(name: str, *, dtype: torch.dtype | str = "auto", **options: Any) -> PairwiseLogitJudge:
    """A PairwiseLogitJudge by folder or hub id."""
    return PairwiseLogitJudge(*load_language_model(name, dtype=dtype), **options)
