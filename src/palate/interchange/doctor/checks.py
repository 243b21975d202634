"""One check, and what checks look at: the facts of a checkpoint's folder, read once and only where they are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from palate.data.templates import framing_rules, prepare_tokenizer
from palate.errors import PalateError
from palate.interchange.conventions import trainer_ids, trainer_of
from palate.interchange.weights import find_weights, read_json
from palate.models.checkpoints import RewardContract, read_contract
from palate.models.reward_model import load_tokenizer
from palate.scoring.local import exchange_from_json

OWN_PAD = "`palate import` gives a model a pad token of its own"


class Check(NamedTuple):
    name: str
    passed: bool
    advice: str  # what was found, and what to do when it failed


@dataclass(frozen=True)
class Folder:
    """A checkpoint's folder. Facts that cannot be read are None; the checks of the folder itself say so."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.path / "config.json")

    @cached_property
    def is_adapter(self) -> bool:
        return (self.path / "adapter_config.json").is_file()

    @cached_property
    def is_classifier(self) -> bool:
        """Whether its weights are those of transformers' classifier, whatever the config calls it."""
        return not any((self.path / name).is_file() for name in ("value_head.safetensors", "pytorch_model.bin"))

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["none"])[0])

    @property
    def model_type(self) -> str:
        return str(self.config.get("model_type"))

    @property
    def merging(self) -> str:
        """What makes a full checkpoint of an adapter."""
        return "`palate merge` makes a full checkpoint" if self.contract else "`palate import` makes a full checkpoint with a contract"

    @property
    def labels(self) -> list[str]:
        """The config's, of which transformers leaves its own two out; an adapter has none, and its base is loaded with as many as the contract names."""
        if self.is_adapter:
            return list(self.outputs)
        found = self.config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        return [str(found[key]) for key in sorted(found, key=int)]

    @cached_property
    def contract(self) -> RewardContract | None:
        try:
            return read_contract(self.path)
        except PalateError:
            return None

    @property
    def outputs(self) -> tuple[str, ...]:
        """Those that the contract names; one reward where there is no contract (which has a check of its own)."""
        return self.contract.readout.outputs if self.contract else ("reward",)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        try:
            return load_tokenizer(str(self.path))
        except PalateError:
            return None

    @cached_property
    def tensors(self) -> list[str]:
        """Names of its tensors; none where they are a pickle, which is not opened."""
        weights = find_weights(self.path)
        return weights.names() if weights else []

    @property
    def has_bias(self) -> bool:
        """Whether a decoder's head has a bias, for which transformers' classes have no place."""
        return "score.bias" in self.tensors

    @property
    def hidden_size(self) -> int:
        return int(self.config.get("hidden_size") or self.config.get("n_embd") or 0)

    def bos(self) -> tuple[bool, bool]:
        """(the chat template writes BOS, the tokenizer puts it itself)."""
        if self.tokenizer is None or self.tokenizer.bos_token is None:
            return False, False
        template = str(self.tokenizer.chat_template or "")
        put = self.tokenizer("a")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return "bos_token" in template or self.tokenizer.bos_token in template, put

    def same_ids(self, trainer: str, remedy: str) -> Check:
        """Whether a stack that encodes chats itself, by its own conventions, makes the ids that the golden examples record; else `remedy` says what does."""
        if self.contract is None or self.tokenizer is None or not self.contract.golden:
            return Check("ids", True, "no golden examples, so it cannot be compared what it makes of a chat")
        chats = [golden for golden in self.contract.golden if golden.exchange["response"] and isinstance(golden.exchange["response"], list)]
        chats = [golden for golden in chats if isinstance(golden.exchange["response"][0], dict) and isinstance(golden.exchange["prompt"], list)]
        if not chats or not self.tokenizer.chat_template:
            return Check("ids", True, "the golden examples are plain text, which it takes as it is given")
        stack = trainer_of(trainer, prepare_tokenizer(load_tokenizer(str(self.path)), close=False), self.config)
        for golden in chats:
            made = trainer_ids(stack, exchange_from_json(golden.exchange))
            if made != golden.ids:
                ends = stack.tokenizer.convert_ids_to_tokens
                return Check(
                    "ids",
                    False,
                    f"makes {len(made or [])} tokens of a golden chat that has {len(golden.ids)}: {ends((made or [])[:2])} ... {ends((made or [])[-2:])} where "
                    f"the contract has {ends(golden.ids[:2])} ... {ends(golden.ids[-2:])}; its rewards are others. {remedy}",
                )
        return Check("ids", True, f"makes the same ids of {len(chats)} golden chats")

    def same_bare_text(self, remedy: str) -> Check | None:
        """Whether plain prompts and responses, joined bare and without special tokens, are the golden ids; None where those are of chats."""
        golden = self.contract.golden if self.contract else []
        plain = [(one.exchange["prompt"] + one.exchange["response"], one.ids) for one in golden if isinstance(one.exchange["response"], str)]
        if self.tokenizer is None or not plain:
            return None
        same = sum(self.tokenizer(text, add_special_tokens=False)["input_ids"] == ids for text, ids in plain)
        found = f"{same} of {len(plain)} golden texts become the golden ids where prompt and completion are joined bare, without special tokens"
        return Check("ids", same == len(plain), found + ("" if same == len(plain) else f". {remedy}"))

    def same_text(self) -> Check:
        """Whether the golden texts, with the special tokens that the tokenizer adds of itself, are the golden ids."""
        texts = [golden for golden in self.contract.golden if golden.text] if self.contract else []
        if self.tokenizer is None or not texts:
            return Check("text", True, "no golden texts to compare")
        same = [self.tokenizer(golden.text)["input_ids"] == golden.ids for golden in texts]
        return Check("text", all(same), f"{sum(same)} of {len(same)} golden texts become the golden ids")

    def framing(self) -> list[int]:
        """BOS and the like that stand in front of every sequence."""
        return framing_rules(self.tokenizer).prefix if self.tokenizer is not None and self.tokenizer.eos_token_id is not None else []


def pad_check(folder: Folder, why: str) -> Check:
    """A pad token that is not EOS, in the tokenizer (consumers overwrite the config's by it)."""
    tokenizer = folder.tokenizer
    pad, eos = (tokenizer.pad_token_id, tokenizer.eos_token_id) if tokenizer is not None else (None, None)
    passed = pad is not None and pad != eos
    return Check("pad token", passed, f"pad id {pad}, EOS id {eos}" + ("" if passed else f"; {why}. {OWN_PAD}"))


def one_label(folder: Folder, why: str) -> Check:
    passed = len(folder.labels) == 1
    advice = f"labels: {', '.join(folder.labels)}; {why}"
    return Check("one label", passed, advice if passed else advice + ". `palate export --format hf --fold` writes one reward")
