"""Every model family there and back: exported to each format that its class allows, imported again, with the rewards that it had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import bert_tokenizer, chatml_tokenizer
from tests.interchange.checkpoints import CHATS
from tests.models.families import DECODERS, FAMILIES, family

from palate.data.templates import PLAIN_CHAT_TEMPLATE, prepare_tokenizer
from palate.data.tokenization import Encoder
from palate.interchange.examples import default_examples
from palate.interchange.exporting import export_model
from palate.interchange.import_options import ImportOptions
from palate.interchange.importing import import_model
from palate.models.heads import head_name
from palate.scoring.contract import build_contract
from palate.scoring.local import load_scorer

BACK = {
    "hf": ImportOptions("classifier"),
    "token-classification": ImportOptions("classifier"),
    "openrlhf": ImportOptions("openrlhf"),
    "llamafactory": ImportOptions(),
}
"""Two formats have tests of their own: adapters, and deepspeed-chat, which reads the token before EOS."""

NO_CLASS = {"token-classification": ("gemma3", "olmo2")}
"""Families that transformers has no such class of."""


def checkpoint(name: str, folder: Path) -> Path:
    decoder = name in DECODERS
    tokenizer = prepare_tokenizer(chatml_tokenizer() if decoder else bert_tokenizer(), chat_template=None if decoder else PLAIN_CHAT_TEMPLATE)
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id if decoder else tokenizer.sep_token_id
    model = family(name, vocab_size=len(tokenizer), pad_token_id=pad, eos_token_id=eos, bos_token_id=None if decoder else tokenizer.cls_token_id)
    torch.nn.init.normal_(model.get_submodule(str(head_name(model))).weight)  # rewards that differ by more than rounding
    contract = build_contract(model, Encoder(tokenizer, max_length=128), golden=default_examples(chat=True))
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    contract.save(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_there_and_back(name: str, tmp_path: Path) -> None:
    source = checkpoint(name, tmp_path / "ours")
    expected = load_scorer(source).score(CHATS)
    assert np.ptp(expected) > 1e-4
    for format in [one for one in BACK if name not in NO_CLASS.get(one, ())] if name in DECODERS else ["hf"]:
        export_model(source, tmp_path / format, format, say=lambda line: None)
        import_model(tmp_path / format, tmp_path / f"{format} back", BACK[format], say=lambda line: None)
        np.testing.assert_allclose(load_scorer(tmp_path / f"{format} back").score(CHATS), expected, atol=1e-6, err_msg=format)
