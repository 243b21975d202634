"""A checkpoint as a Scorer: packed rows under a token budget, every shared prompt computed once, float32 rewards, input order restored.

`load_scorer(dir)` replays the golden examples of the contract first and refuses a checkpoint that does not reproduce them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from palate.data.collation import PreferenceCollator
from palate.data.packing import TOKEN_BUDGET, Planted, batches_by_length, default_budget, fill, packed_row, plant
from palate.data.templates import prepare_tokenizer
from palate.data.tokenization import DEFAULT_SEPARATOR, Encoder, as_exchange, response_text, shared_prefix
from palate.errors import ConfigError, ContractError, DataError, ModelError, RowError
from palate.models.checkpoints import RewardContract, find_contract, read_contract, score_tolerance
from palate.models.engine import CHECKED_SEQUENCES, Engine, checked, choose_packing, packing_error
from palate.models.heads import head_name, read_rewards, without_head
from palate.models.reward_model import ONE_REWARD, check_local, fit_tokenizer, has_random_head, is_decoder, load_pretrained, load_tokenizer, position_limit
from palate.types import Conversation, Exchange, Readout, TokenIds

logger = logging.getLogger(__name__)

CHUNK = 4096  # exchanges tokenized, and searched for shared prompts, together; bounds memory on long inputs


class LocalScorer:
    """Rewards from a model in this process.

    `on_long` says what becomes of a sequence beyond `max_length`: "error" (default) raises and names it, "nan" gives NaN, "truncate_prompt"
    cuts the start of the prompt (never the response). `cut_prompts`, which a contract of that length policy sets, cuts prompts in every case.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        separator: str = DEFAULT_SEPARATOR,
        on_long: str = "error",
        cut_prompts: bool = False,
        token_budget: int | None = None,
        packing: str = "auto",
        device: str | torch.device | None = None,
        contract: RewardContract | None = None,
    ):
        self.device = chosen_device(device)
        self.model = model.to(self.device).eval()  # type: ignore[arg-type]
        self.tokenizer = tokenizer
        self.encoder = Encoder(tokenizer, max_length=max_length, separator=separator, text_end=contract.text_end if contract else None)
        self.on_long = on_long
        self.cut_prompts = cut_prompts
        self.token_budget = token_budget or default_budget(self.device.type)
        # A row suited to a CPU's caches is no reason to cut a tree, which would compute its prefix again; memory is.
        self.tree_budget = token_budget or TOKEN_BUDGET
        self.contract = contract
        self.readout = contract.readout if contract else Readout()
        self.packing = packing
        self.engine: Engine = choose_packing(self.model, packing, max_length)
        assert tokenizer.pad_token_id is not None
        self._pad = PreferenceCollator(int(tokenizer.pad_token_id)).pad
        self._packing_checked = False

    def score(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> np.ndarray:
        """Rewards of N conversations, float32 [N], in input order.

        A conversation is a list of messages, whole text, a (prompt, response) pair or an Exchange. Raises DataError for one that is too long
        (see `on_long`). A model of step rewards gives one for all steps of a response, gathered as its contract says.
        """
        return self.score_detailed(conversations, progress=progress, on_long=on_long)[0]

    def score_detailed(
        self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """(rewards as `score` gives them, what each was read from): outputs by name, or `steps`, P(good) of each step; empty for a plain reward."""
        names = self.readout.outputs
        if self.readout.aggregate is not None:
            steps = self.score_steps(conversations, progress=progress, on_long=on_long)
            rewards = np.array([aggregate_steps(one, self.readout.aggregate) for one in steps], dtype=np.float32)
            return rewards, [{"steps": one.tolist()} for one in steps]
        outputs = self.outputs(conversations, progress=progress, on_long=on_long)
        rewards = outputs @ np.array(self.readout.weights, dtype=np.float32)
        return rewards, [dict(zip(names, row, strict=True)) for row in outputs.tolist()] if len(names) > 1 else [{} for _ in rewards]

    def outputs(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> np.ndarray:
        """All outputs of the head for N conversations, float32 [N, D]; `self.readout.outputs` names them."""
        outputs = np.empty((len(conversations), len(self.readout.outputs)), dtype=np.float32)
        for rows, values in self._all(conversations, progress, on_long, steps=False):
            outputs[rows] = values[:, 0]
        return outputs

    def embed(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> np.ndarray:
        """What the head reads of N conversations (the pooled hidden state behind the last norm), float32 [N, H]; NaN rows for what `score` makes NaN.

        The head's weights times an embedding (plus its bias, where it has one) are the outputs of the model.
        """
        embeddings = np.empty((len(conversations), self.width), dtype=np.float32)
        with without_head(self.model):
            for rows, values in self._all(conversations, progress, on_long, steps=False):
                embeddings[rows] = values[:, 0]
        return embeddings

    def embed_ids(self, sequences: Sequence[list[int]]) -> np.ndarray:
        """What the head reads at the last tokens of token sequences as they stand, float32 [N, H]."""
        embeddings = np.empty((len(sequences), self.width), dtype=np.float32)
        with without_head(self.model):
            for rows, values in self._batches(sequences, None):
                embeddings[rows] = values[:, 0]
        return embeddings

    @property
    def width(self) -> int:
        """H, the size of what the head reads."""
        name = head_name(self.model)
        assert name is not None
        return int(self.model.get_submodule(name).in_features)

    def score_steps(self, conversations: Sequence[Exchange | Conversation], *, progress: bool = False, on_long: str | None = None) -> list[np.ndarray]:
        """P(good) of every step of N conversations, float32 [steps] each; a response is cut into steps at the contract's separator.

        Raises DataError where the model gives no step rewards.
        """
        if self.readout.aggregate is None:
            raise DataError(f"this model gives {', '.join(self.readout.outputs)} for a whole response; score_steps needs one trained with loss.type: steps")
        found: list[np.ndarray] = [np.empty(0)] * len(conversations)
        for rows, values in self._all(conversations, progress, on_long, steps=True):
            for row, outputs in zip(rows, values, strict=True):
                each = np.broadcast_to(outputs, (len(outputs), len(self.readout.outputs))).copy()  # what could not be scored is one NaN
                found[row] = read_rewards(torch.from_numpy(each), self.readout).numpy()
        return found

    def _all(self, conversations: Sequence[Any], progress: bool, on_long: str | None, *, steps: bool) -> Iterator[tuple[np.ndarray, Any]]:
        """(rows, outputs of the tokens read of each) until every conversation has been seen."""
        with tqdm(total=len(conversations), desc="scoring", unit="response", disable=not progress) as bar:
            for start in range(0, len(conversations), CHUNK):
                exchanges = [as_exchange(item) for item in conversations[start : start + CHUNK]]
                ids = self.fit(exchanges, on_long or self.on_long, first=start)
                for rows, values in self._batches(ids, self._step_ends(exchanges, ids, start) if steps else None):
                    yield start + rows, values
                    bar.update(len(rows))

    def _step_ends(self, exchanges: Sequence[Exchange], ids: Sequence[list[int] | None], first: int) -> list[tuple[int, ...]]:
        """Positions of the step ends of each sequence (of one whose prompt was cut: in what is left)."""
        found = []
        for i, (exchange, kept) in enumerate(zip(exchanges, ids, strict=True)):
            steps = [] if kept is None or isinstance(exchange.response, TokenIds) else response_text(exchange).split(self.readout.separator)
            try:
                ends = self.encoder.step_ends(exchange, [step for step in steps if step.strip()])
            except RowError as error:
                raise RowError(error.kind, f"conversation {first + i}: {error}") from error
            cut = len(self.encoder.encode([exchange])[0]) - len(kept) if kept is not None and self.encoder.max_length else 0
            found.append(tuple(end - cut for end in ends))
        return found

    def fit(self, exchanges: Sequence[Exchange], on_long: str, *, first: int = 0) -> list[list[int] | None]:
        """Token ids of each exchange within max_length; None for what becomes NaN (too long, or empty)."""
        fitted: list[list[int] | None] = []
        limit = self.encoder.max_length
        for i, (exchange, ids) in enumerate(zip(exchanges, self.encoder.encode(exchanges), strict=True)):
            short: list[int] | None = ids
            problem = "is empty: it has no token to read a reward from"
            if limit is not None and len(ids) > limit:
                cut = self.cut_prompts or on_long == "truncate_prompt"
                short = self.encoder.fit(ids, self.encoder.prompt_length(exchange, ids)) if cut else None
                problem = f"has {len(ids)} tokens, max_length is {limit}" + (" and its response alone does not fit" if cut else "")
                problem += '; shorten it, or pass on_long="truncate_prompt" (cuts the start of the prompt) or "nan"'
            if not short and on_long != "nan":
                raise DataError(f"conversation {first + i} {problem}")
            fitted.append(short or None)
        return fitted

    def read_ids(self, sequences: Sequence[list[int]], reads: Sequence[tuple[int, ...]] | None = None) -> Iterator[tuple[np.ndarray, Any]]:
        """(rows, outputs [tokens read, D] of each) batch by batch, of token sequences as they stand. `reads`: positions in each; its last token otherwise."""
        return self._batches(sequences, reads)

    def rewards_of(self, outputs: np.ndarray) -> np.ndarray:
        """Rewards of outputs that `read_ids` gave (a model of step rewards: P(good) at each). [R, D] -> [R]"""
        return read_rewards(torch.from_numpy(outputs), self.readout).numpy()

    def _batches(self, ids: Sequence[list[int] | None], reads: Sequence[tuple[int, ...]] | None) -> Iterator[tuple[np.ndarray, Any]]:
        """(rows, outputs [tokens read, D] of each) batch by batch; one NaN for all outputs of what could not be scored."""
        lost = np.array([i for i, x in enumerate(ids) if x is None], dtype=int)
        if len(lost):
            yield lost, np.full((len(lost), 1, 1), np.nan, dtype=np.float32)
        # Equal sequences are computed once: their rewards must tie, and two places in a row may round differently.
        rows: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for i, x in enumerate(ids):
            if x is not None:
                rows.setdefault((tuple(x), () if reads is None else reads[i]), []).append(i)
        same = list(rows.values())
        for members, outputs in self._outputs([list(sequence) for sequence, _ in rows], None if reads is None else [read for _, read in rows]):
            found = [outputs[j] for j, i in enumerate(members) for _ in same[i]]
            yield np.concatenate([same[i] for i in members]), np.stack(found) if reads is None else found

    def score_ids(self, sequences: Sequence[list[int]]) -> np.ndarray:
        """Rewards of token sequences as they stand, read at their last tokens, float32 [N]."""
        rewards = np.empty(len(sequences), dtype=np.float32)
        for members, outputs in self._outputs(sequences):
            rewards[members] = read_rewards(torch.from_numpy(np.concatenate(outputs)), self.readout).numpy()
        return rewards

    def _outputs(self, sequences: Sequence[list[int]], reads: Sequence[tuple[int, ...]] | None = None) -> Iterator[tuple[list[int], list[np.ndarray]]]:
        """(indices, outputs [tokens read, D] of each) of a batch after the other, the largest first, so that memory is claimed once.

        `reads`: positions to read in each sequence; its last token otherwise.
        """
        if self.engine.packing != "padded" and not self._packing_checked and sequences:
            self._check_packing(sequences[:CHECKED_SEQUENCES])
        if self.engine.packing == "padded":
            for members in batches_by_length([len(ids) for ids in sequences], self.token_budget):
                yield members, self._run(self._pad([sequences[i] for i in members]), members, reads)
            return
        planted = plant(sequences, self.tree_budget) if self.engine.packing == "shared" else [Planted([i], 0) for i in range(len(sequences))]
        sizes = [tree.prefix + sum(len(sequences[i]) - tree.prefix for i in tree.indices) for tree in planted]
        for row in sorted(fill(sizes, self.token_budget), key=lambda row: -sum(sizes[t] for t in row)):
            members = [i for t in row for i in planted[t].indices]
            batch = packed_row([[sequences[i] for i in planted[t].indices] for t in row], [planted[t].prefix for t in row])
            yield members, self._run(batch, members, reads)

    @torch.inference_mode()
    def _run(self, batch: dict[str, Any], members: list[int], reads: Sequence[tuple[int, ...]] | None) -> list[np.ndarray]:
        """Outputs [tokens read, D] of each member."""
        counts = [1] * len(members) if reads is None else [len(reads[i]) for i in members]
        if reads is not None:
            batch["read_row"] = torch.repeat_interleave(torch.arange(len(members)), torch.tensor(counts))
            batch["read_position"] = torch.tensor([position for i in members for position in reads[i]], dtype=torch.long)
        outputs = self.model(**self._on_device(batch)).logits.float().cpu().numpy()
        return np.split(outputs, np.cumsum(counts)[:-1])

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {key: value.to(self.device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}

    def _check_packing(self, sequences: Sequence[list[int]]) -> None:
        """Compute a few sequences packed and padded; where they differ, everything is padded from here on."""
        self._packing_checked = True
        prefix = shared_prefix(sequences) if self.engine.packing == "shared" else 0
        trees = [sequences] if prefix else [[ids] for ids in sequences]
        packed, padded = packed_row(trees, [prefix] * len(trees)), self._pad(sequences)
        problem = packing_error(self.model, self._on_device(packed), self._on_device(padded))
        self.engine = checked(self.engine, problem, self.packing)
        if problem:
            logger.warning("packing: padded (%s)", problem)


def load_scorer(
    directory: str | Path,
    *,
    verify: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    token_budget: int | None = None,
    packing: str = "auto",
    max_length: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    model: PreTrainedModel | None = None,
    **model_kwargs: Any,
) -> LocalScorer:
    """A checkpoint (or hub id) as Scorer, under its own contract.

    The golden examples are replayed first; a checkpoint that does not reproduce them raises ContractError. A reward model without a contract
    (from another trainer) is accepted: its chat template is used as it stands, plain text gets EOS, and nothing can be verified. A model without a
    trained head raises ModelError.
    `dtype`: load the backbone in another precision; golden scores are then compared within that precision's rounding. `packing`: see
    RewardConfig; `token_budget`: tokens computed at a time; `model`: the checkpoint's model where it is in memory already. Raises ConfigError for a
    device that is not there, and for a `max_length` beyond the model's positions.
    """
    directory = str(directory)
    device = chosen_device(device)
    check_local(directory)
    source: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    contract = read_contract(directory, revision) if find_contract(directory, revision) else None
    tokenizer = prepare_tokenizer(load_tokenizer(directory, **source), close=False)
    if model is None:
        dtype = dtype or (getattr(torch, contract.weights_dtype) if contract else torch.float32)
        outputs = contract.readout.outputs if contract else ONE_REWARD
        model = load_pretrained(directory, dtype=dtype, outputs=outputs, **source, **model_kwargs)
        if has_random_head(model):
            raise ModelError(
                f"{directory}: no trained reward head is in it, and rewards of a random one mean nothing. Train one (palate train); where another trainer "
                "saved it under another name, `palate import` finds it"
            )
    fit_tokenizer(model, tokenizer)
    if contract is None and is_decoder(model) and tokenizer.pad_token_id == tokenizer.eos_token_id:
        logger.warning(
            "%s: its padding is EOS, which transformers skips, and no contract says whether its trainer read EOS or the token before; EOS is read. "
            "`palate import` settles that",
            directory,
        )
    positions = position_limit(model)
    if max_length and positions and max_length > positions:
        raise ConfigError(f"max_length is {max_length}, and {directory} has positions for {positions} tokens; expected {positions} or fewer")
    limit = max_length or (contract.max_length if contract else positions)
    scorer = LocalScorer(
        model,
        tokenizer,
        max_length=limit,
        separator=contract.separator if contract else DEFAULT_SEPARATOR,
        cut_prompts=contract is not None and contract.length_policy == "truncate_prompt",
        token_budget=token_budget,
        packing=packing,
        device=device,
        contract=contract,
    )
    if contract and verify:
        for problem in contract_problems(scorer):
            raise ContractError(f"{directory}: {problem}. The checkpoint does not give the rewards it was saved with; run `palate doctor {directory}`")
    return scorer


def contract_problems(scorer: LocalScorer) -> list[str]:
    """Where a loaded checkpoint departs from its contract, in words; empty when it keeps it."""
    contract = scorer.contract
    assert contract is not None
    problems = []
    rules = scorer.encoder.rules
    if scorer.encoder.template_hash() != contract.chat_template_sha256:
        problems.append("the chat template is not the one used in training (its hash differs)")
    if rules.prefix != contract.prefix_ids or rules.eos_id != contract.eos_id:
        problems.append(f"BOS/EOS differ: prefix {rules.prefix} and EOS {rules.eos_id}, recorded {contract.prefix_ids} and {contract.eos_id}")
    if scorer.tokenizer.pad_token_id != contract.pad_id:
        problems.append(f"the pad token has id {scorer.tokenizer.pad_token_id}, recorded {contract.pad_id}")
    for i, golden in enumerate(contract.golden):
        ids = scorer.encoder.encode([exchange_from_json(golden.exchange)])[0]
        if ids != golden.ids:
            at = next((k for k, (a, b) in enumerate(zip(ids, golden.ids)) if a != b), min(len(ids), len(golden.ids)))  # noqa: B905
            problems.append(f"golden example {i}: token ids differ from position {at} on ({len(ids)} ids, recorded {len(golden.ids)})")
    if contract.golden and not problems:
        scores = scorer.score_ids([g.ids for g in contract.golden])
        tolerance = score_tolerance(scorer.model.dtype)
        for i, (golden, score) in enumerate(zip(contract.golden, scores, strict=True)):
            if not abs(score - golden.score) <= tolerance * max(1.0, abs(golden.score)):
                problems.append(f"golden example {i}: scores {score:.6f}, recorded {golden.score:.6f} (tolerance {tolerance:g})")
    return problems


def chosen_device(name: str | torch.device | None) -> torch.device:
    """The device of this name, by default this process's own. Raises ConfigError for one that torch cannot use here."""
    try:
        device = torch.device(name or own_device())
    except RuntimeError as error:
        raise ConfigError(f"device {name!r} is none that torch knows; expected cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device {name}: torch finds {torch.cuda.device_count()} GPUs on this machine; expected cpu, or one of those")
    return device


def own_device() -> str:
    """The GPU of this process (of several ranks on a machine each has its own), else the CPU."""
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


def aggregate_steps(steps: np.ndarray, how: str) -> float:
    """One reward from P(good) of each step; NaN where there is no step. Source: Lightman et al. 2023 (arXiv 2305.20050), section 2.6 (product, min)."""
    if not len(steps):
        return float("nan")
    return float({"min": steps.min(), "product": steps.prod(), "mean": steps.mean(), "last": steps[-1]}[how])


def exchange_from_json(value: dict[str, Any]) -> Exchange:
    def part(item: Any) -> Conversation:
        return item if isinstance(item, str) else TokenIds(item) if item and isinstance(item[0], int) else tuple(item)

    return Exchange(part(value["prompt"]), part(value["response"]), value["template_args"])


def describe_model(scorer: LocalScorer) -> dict[str, Any]:
    """What results and reports say about the model that gave the scores."""
    config = scorer.model.config
    return {
        "name": str(config._name_or_path),
        "architecture": type(scorer.model).__name__,
        "decoder": is_decoder(scorer.model),
        "parameters": sum(p.numel() for p in scorer.model.parameters()),
        "max_length": scorer.encoder.max_length,
        "chat_template_sha256": scorer.encoder.template_hash(),
        "contract_sha256": scorer.contract.sha256() if scorer.contract else None,
        "trained_on": scorer.contract.data_fingerprint if scorer.contract else None,
    }
