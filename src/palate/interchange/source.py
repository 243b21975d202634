"""What is exported: a checkpoint, adapter or hub model as it scores here, with a few sequences and their rewards to compare every export with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from palate.errors import ModelError
from palate.interchange.conventions import trainer_of
from palate.interchange.examples import default_examples
from palate.interchange.weights import read_json
from palate.models.checkpoints import RewardContract, score_tolerance
from palate.models.heads import head_name
from palate.models.reward_model import is_decoder, load_tokenizer, mark_config
from palate.scoring.contract import build_contract
from palate.scoring.gated import GATE_NAME
from palate.scoring.local import LocalScorer, load_scorer
from palate.types import Readout


@dataclass(frozen=True)
class Source:
    """A reward model in memory. Its contract's golden examples are what an export must score alike."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    contract: RewardContract

    @property
    def head(self) -> nn.Linear:
        name = head_name(self.model)
        assert name is not None  # a model without one is refused at loading
        return self.model.get_submodule(name)  # type: ignore[return-value]

    @property
    def backbone(self) -> Any:
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def tolerance(self) -> float:
        return score_tolerance(self.model.dtype)

    def sequences(self) -> list[list[int]]:
        return [golden.ids for golden in self.contract.golden]

    def scores(self) -> list[float]:
        return [golden.score for golden in self.contract.golden]

    def need_decoder(self, format: str) -> None:
        if not is_decoder(self.model):
            raise ModelError(f"{self.name}: {type(self.model).__name__} reads a pooled first token, and --format {format} reads a value at each token; use hf")


def load_source(directory: str | Path) -> Source:
    """A reward model under its own contract, which is replayed first; one without a contract gets its golden examples now."""
    if (Path(directory) / GATE_NAME).is_file():
        raise ModelError(
            f"{directory}: its reward is gated: what each output weighs depends on the prompt, which no other stack's format says. Serve it (palate serve), or "
            f"export the folder without {GATE_NAME}, whose fixed weights then count"
        )
    scorer = load_scorer(directory, packing="padded", device="cpu")
    contract = scorer.contract
    if contract is None:
        _refuse_unclear(directory, scorer)
    if contract is None or not contract.golden:
        examples = default_examples(bool(scorer.tokenizer.chat_template))
        built = build_contract(scorer.model, scorer.encoder, golden=examples, readout=scorer.readout)
        contract = built if contract is None else replace(contract, golden=built.golden)
    if not contract.golden:
        raise ModelError(f"{directory}: max_length {contract.max_length} leaves no room for an example to compare an export by")
    now = scorer.score_ids([golden.ids for golden in contract.golden]).tolist()
    contract = replace(contract, golden=[replace(golden, score=score) for golden, score in zip(contract.golden, now, strict=True)])
    return Source(str(directory), scorer.model, scorer.tokenizer, contract)


def _refuse_unclear(directory: str | Path, scorer: LocalScorer) -> None:
    """Raises ModelError for another trainer's folder whose files leave open what its reward is."""
    theirs = trainer_of("classifier", load_tokenizer(str(directory)), read_json(Path(directory) / "config.json"))
    ids = scorer.encoder.encode(default_examples(bool(scorer.tokenizer.chat_template)))[0]
    if theirs.before_eos and ids[-1] == scorer.tokenizer.eos_token_id:
        raise ModelError(
            f"{directory}: its padding is EOS, which transformers skips, and no contract says whether its trainer read EOS or the token before. "
            "`palate import` settles that; export what it writes"
        )


def folded(source: Source) -> Source:
    """The same reward from a head of one output: weights times outputs is linear, so one row says it. The model is changed in place."""
    readout = source.contract.readout
    if readout.aggregate is not None:
        raise ModelError(f"{source.name}: gives P(good) of each step, which one output cannot say; export it as hf or token-classification")
    if readout == Readout():
        return source
    head, weights = source.head, torch.tensor(readout.weights)
    head.weight = nn.Parameter((weights @ head.weight.float().cpu())[None])
    if head.bias is not None:
        head.bias = nn.Parameter((weights @ head.bias.float().cpu())[None])
    head.out_features = 1
    source.model.config.num_labels = 1
    vars(source.model)["num_labels"] = 1
    mark_config(source.model)
    return replace(source, contract=replace(source.contract, readout=Readout()))


def without_bias(source: Source, format: str, *, dropped: bool) -> Source:
    """For formats whose head has no bias. A bias is not dropped unless the user says so; rewards are then lower by it, all of them alike."""
    bias: Tensor | None = source.head.bias
    if bias is None or not is_decoder(source.model):
        return source
    shift = float(bias.detach().float() @ torch.tensor(source.contract.readout.weights))
    if not dropped:
        raise ModelError(
            f"{source.name}: its head has a bias (the reward's part is {shift:.6g}), for which --format {format} has no place. --drop-bias leaves it out: "
            "every reward is then lower by it and no preference changes. llamafactory and token-classification keep it"
        )
    source.head.register_parameter("bias", None)
    golden = [replace(golden, score=golden.score - shift) for golden in source.contract.golden]
    return replace(source, contract=replace(source.contract, golden=golden))
