"""Every stack's checkpoint, simulated after its source, gives the stack's own rewards once imported; what cannot be trusted or known is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import TOKENIZERS, tiny_model
from tests.interchange import stacks
from tests.interchange.checkpoints import checkpoint
from tests.interchange.stacks import CHATS, Reward
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, pipeline

from palate.cli.main import main
from palate.data.templates import read_chat_template
from palate.data.tokenization import as_exchange
from palate.errors import ConfigError, ModelError, StorageError
from palate.interchange.exporting import export_model
from palate.interchange.import_options import ImportOptions
from palate.interchange.importing import import_model
from palate.models.checkpoints import RewardStatistics
from palate.scoring.local import LocalScorer, load_scorer


def imported(source: Path, output: Path, **options: Any) -> tuple[LocalScorer, list[str]]:
    said: list[str] = []
    import_model(source, output, ImportOptions(**options), say=said.append)
    return load_scorer(output), said


def agrees(scorer: LocalScorer, reward: Reward) -> None:
    np.testing.assert_allclose(scorer.score(CHATS), [reward(chat) for chat in CHATS], rtol=1e-5, atol=1e-5)


def line(said: list[str], start: str) -> str:
    return next(one for one in said if one.startswith(f"{start}:"))


@pytest.mark.parametrize("prefix", ["score", "value_head"])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_openrlhf(tmp_path: Path, kind: str, prefix: str) -> None:
    """Llama: the template leaves a space before EOS; BOS stands in the template; pad was EOS, but OpenRLHF pools by the mask."""
    reward = stacks.openrlhf(tmp_path / "theirs", kind, prefix)
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours")
    agrees(scorer, reward)
    assert scorer.contract is not None and scorer.contract.rewards == RewardStatistics(1.5, 2.5, 1.0, 0)
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["id2label"] == {"0": "reward"} and config["problem_type"] == "regression" and "mean" not in config
    assert "architectures is RewardModel" in line(said, "layout")
    assert scorer.tokenizer.pad_token_id != scorer.tokenizer.eos_token_id
    if kind == "llama":
        assert "which is EOS" in line(said, "pad")


def test_a_llama_that_was_trained_without_bos(tmp_path: Path) -> None:
    """OpenRLHF encodes the template's text as it stands: where it has no BOS, the tokenizer's own must not appear."""
    stacks.openrlhf(tmp_path / "theirs")
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    (tmp_path / "theirs" / "chat_template.jinja").write_text(template)
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours")
    assert "turned off" in line(said, "BOS") and scorer.encoder.rules.prefix == []
    ids = scorer.encoder.encode([stacks_exchange()])[0]
    assert scorer.tokenizer.decode(ids) == "[user] hi[assistant] paris </s>"


def stacks_exchange() -> Any:
    from palate.types import Exchange

    return Exchange(({"role": "user", "content": "hi"},), ({"role": "assistant", "content": "paris"},))


def test_llamafactory_keeps_the_bias(tmp_path: Path) -> None:
    reward = stacks.llamafactory(tmp_path / "theirs")
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours")
    agrees(scorer, reward)
    assert "0.7" in line(said, "bias") and "lm_head.weight" in line(said, "left out")
    assert load_file(tmp_path / "ours" / "model.safetensors")["score.bias"].item() == pytest.approx(0.7)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    ids = torch.tensor([scorer.contract.golden[0].ids])  # type: ignore[union-attr]
    with torch.no_grad():  # what the line on the bias says of transformers
        assert plain(ids).logits.item() + 0.7 == pytest.approx(scorer.contract.golden[0].score, abs=1e-5)  # type: ignore[union-attr]


def test_llamafactory_adapter(tmp_path: Path) -> None:
    reward = stacks.llamafactory(tmp_path / "theirs", adapter_of=tmp_path / "base")
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours")
    agrees(scorer, reward)
    assert str(tmp_path / "base") in line(said, "base")


def test_an_unsplit_value_head(tmp_path: Path) -> None:
    """Under ZeRO-3, LLaMA-Factory's raw save has one file with pretrained_model.* and v_head.summary.*."""
    reward = stacks.llamafactory(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    head = load_file(tmp_path / "theirs" / "value_head.safetensors")
    save_file({f"pretrained_model.{name}": t for name, t in tensors.items()} | head, tmp_path / "theirs" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "theirs" / "value_head.safetensors").unlink()
    agrees(imported(tmp_path / "theirs", tmp_path / "ours")[0], reward)


@pytest.mark.parametrize(("llama_with_pad", "end_token"), [(True, False), (True, True), (False, False)])
def test_deepspeed_chat(tmp_path: Path, llama_with_pad: bool, end_token: bool) -> None:
    reward = stacks.deepspeed_chat(tmp_path / "theirs", llama_with_pad=llama_with_pad, end_token=end_token)
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours", allow_pickle=True, template="deepspeed-chat")
    agrees(scorer, reward)
    assert "rwtransformer" in line(said, "layout")


def test_deepspeed_chat_reads_before_eos_where_that_is_padding(tmp_path: Path) -> None:
    """The end text is the tokenizer's EOS, as GPT-2's and NeoX's is: DeepSpeed-Chat takes it for padding."""
    stacks.deepspeed_chat(tmp_path / "theirs", llama_with_pad=False)
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours", allow_pickle=True, template="deepspeed-chat", end_text="<|im_end|>")
    assert "read before EOS" in line(said, "reward")
    text = scorer.tokenizer.decode(scorer.encoder.encode([stacks_exchange()])[0])
    assert text == "\n\nHuman: hi\n\nAssistant: paris"
    assert "as the trainer's did" in line(said, "plain text")
    assert scorer.tokenizer.decode(scorer.encoder.encode([as_exchange("the sea")])[0]) == "the sea"


def test_trl_by_its_card(tmp_path: Path) -> None:
    reward = stacks.classifier(tmp_path / "theirs", "qwen3", pad="<|endoftext|>", card=True, labels=True)
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours")
    agrees(scorer, reward)
    assert line(said, "conventions").startswith("conventions: trl")


@pytest.mark.parametrize(("name", "before_pad"), [("trl", False), ("open-instruct", True)])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_classifier_whose_pad_is_eos(tmp_path: Path, kind: str, name: str, before_pad: bool) -> None:
    """Both then skip a final EOS; behind ChatML's there is a line break, at which TRL (transformers) reads and open-instruct does not."""
    reward = stacks.classifier(tmp_path / "theirs", kind, pad="</s>" if kind == "llama" else "<|im_end|>", before_pad=before_pad)
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours", format=name)
    agrees(scorer, reward)
    assert "read before EOS" in line(said, "reward") and "no id2label" in line(said, "labels")


def test_a_classifier_of_an_unknown_trainer_is_asked_for_only_where_it_matters(tmp_path: Path) -> None:
    stacks.classifier(tmp_path / "same", "qwen3", pad="<|endoftext|>", labels=True)
    assert line(imported(tmp_path / "same", tmp_path / "ours")[1], "conventions").startswith("conventions: classifier")
    reward = stacks.classifier(tmp_path / "differs", "qwen3", pad="<|im_end|>", labels=True)
    with pytest.raises(ConfigError, match="decides where a chat begins and ends.*--format trl"):
        imported(tmp_path / "differs", tmp_path / "never")
    agrees(imported(tmp_path / "differs", tmp_path / "said", format="classifier")[0], reward)


def test_nemo_rl_adds_what_the_template_leaves_out(tmp_path: Path) -> None:
    stacks.classifier(tmp_path / "theirs", "llama", pad=None, labels=True)
    (tmp_path / "theirs" / "chat_template.jinja").write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}")
    scorer, _ = imported(tmp_path / "theirs", tmp_path / "ours", format="nemo-rl")
    assert scorer.tokenizer.decode(scorer.encoder.encode([stacks_exchange()])[0]) == "<s>[user] hi[assistant] paris</s>"


def test_several_outputs_are_weighed_as_the_user_says(tmp_path: Path) -> None:
    stacks.classifier(tmp_path / "theirs", "qwen3", pad="<|endoftext|>", labels=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs", num_labels=3, ignore_mismatched_sizes=True)
    model.config.id2label = {0: "helpful", 1: "correct", 2: "long"}
    model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(ConfigError, match="helpful, correct, long; say what the reward is with --weights"):
        imported(tmp_path / "theirs", tmp_path / "never")
    scorer, _ = imported(tmp_path / "theirs", tmp_path / "ours", weights={"helpful": 1.0, "long": -0.5})
    golden = scorer.contract.golden[0]  # type: ignore[union-attr]
    with torch.no_grad():
        outputs = model.eval()(torch.tensor([golden.ids])).logits[0]
    assert golden.score == pytest.approx(float(outputs[0] - 0.5 * outputs[2]), abs=1e-5)


@pytest.mark.parametrize("with_head", [True, False])
def test_adapters_need_their_head(tmp_path: Path, with_head: bool) -> None:
    from peft import LoraConfig, get_peft_model

    stacks.classifier(tmp_path / "base", "qwen3", pad="<|endoftext|>", labels=True)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    stacks.edit_config(tmp_path / "base", architectures=["Qwen3ForCausalLM"])  # what adapters usually name
    base = load_file(tmp_path / "base" / "model.safetensors")
    head = base.pop("score.weight")
    save_file(base, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    lora = LoraConfig(task_type="SEQ_CLS" if with_head else None, r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped = get_peft_model(model, lora).eval()
    wrapped.save_pretrained(tmp_path / "adapter")
    tokenizer = stacks.chatml_tokenizer()
    tokenizer.save_pretrained(tmp_path / "adapter")
    assert head.shape == (1, 32)
    if not with_head:
        with pytest.raises(ModelError, match="holds no head.*not saved"):
            imported(tmp_path / "adapter", tmp_path / "ours")
        return

    def reward(chat: list[dict[str, str]]) -> float:
        ids = tokenizer(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return float(wrapped(torch.tensor([ids])).logits[0, 0])

    scorer, said = imported(tmp_path / "adapter", tmp_path / "ours")
    agrees(scorer, reward)
    assert "score" in line(said, "head")


@pytest.mark.parametrize("kind", ["bert", "qwen3"])
def test_our_own_exports(tmp_path: Path, kind: str) -> None:
    """An encoder gets [CLS] and [SEP], which no template writes; a critic is read as the reward model that it was."""
    expected = load_scorer(checkpoint(tmp_path / "ours", kind)).score(CHATS)
    format = "hf" if kind == "bert" else "token-classification"
    export_model(tmp_path / "ours", tmp_path / "out", format, say=lambda line: None)
    scorer, _ = imported(tmp_path / "out", tmp_path / "back", format="classifier" if kind == "bert" else "auto")
    np.testing.assert_allclose(scorer.score(CHATS), expected, atol=1e-5)


OWN_CODE = """
import torch
from transformers import Qwen3Config, Qwen3Model, Qwen3PreTrainedModel

class OwnConfig(Qwen3Config):
    model_type = "own"

class OwnForSequenceClassification(Qwen3PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = Qwen3Model(config)
        self.score = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
"""


def test_code_of_a_models_own_runs_where_that_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    expected = load_scorer(checkpoint(tmp_path / "theirs")).score(CHATS)
    (tmp_path / "theirs" / "reward_contract.json").unlink()
    (tmp_path / "theirs" / "modeling_own.py").write_text(OWN_CODE)
    code = {"AutoConfig": "modeling_own.OwnConfig", "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification"}
    stacks.edit_config(tmp_path / "theirs", model_type="own", architectures=["OwnForSequenceClassification"], auto_map=code)
    said: list[str] = []
    import_model(tmp_path / "theirs", tmp_path / "ours", ImportOptions(trust_remote_code=True), say=said.append)
    assert "not loaded again: it needs its own code" in said[-1]
    np.testing.assert_allclose(load_scorer(tmp_path / "ours", trust_remote_code=True).score(CHATS), expected, atol=1e-5)


# --- plain text ---

TEXTS = ["what is paris? the capital", "hi! No, go away, you fool", "a poem about the sea </s>", "the wind<|im_end|>"]


def plain_ids(scorer: LocalScorer, texts: list[str] = TEXTS) -> list[list[int]]:
    return scorer.encoder.encode([as_exchange(text) for text in texts])


@pytest.mark.parametrize("template", [None, "none"])
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_plain_text_of_a_classifier_is_read_as_pipelines_read_it(tmp_path: Path, kind: str, template: str | None) -> None:
    """The tokenizer's BOS, and no EOS that is not in the text; a dialogue rendered beforehand then has the reward of the chat."""
    stacks.classifier(tmp_path / "theirs", kind, pad="<s>" if kind == "llama" else "<|endoftext|>", labels=True)
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours", format="classifier", template=template)
    classify = pipeline("text-classification", model=str(tmp_path / "theirs"), function_to_apply="none", device="cpu")
    np.testing.assert_allclose(scorer.score(TEXTS), [classify(text)[0]["score"] for text in TEXTS], rtol=1e-5, atol=1e-5)
    assert "as the trainer's did" in line(said, "plain text") and scorer.contract is not None and scorer.contract.text_end == ""
    if template is None:
        rendered = [str(scorer.tokenizer.apply_chat_template(chat, tokenize=False)) for chat in CHATS]
        assert plain_ids(scorer, rendered) == scorer.encoder.encode([as_exchange(chat) for chat in CHATS])


@pytest.mark.parametrize("pad", ["<s>", "</s>"])
def test_plain_text_of_trl_ends_at_eos_or_before_it(tmp_path: Path, pad: str) -> None:
    """TRL writes EOS as text, and transformers skips it where it is padding."""
    stacks.classifier(tmp_path / "theirs", "llama", pad=pad, labels=True)
    scorer, _ = imported(tmp_path / "theirs", tmp_path / "ours", format="trl", template="none")
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "theirs"), AutoModelForSequenceClassification.from_pretrained(tmp_path / "theirs").eval()
    texts = TEXTS[:2]
    with torch.no_grad():
        theirs = [model(torch.tensor([tokenizer(text + "</s>")["input_ids"]])).logits.item() for text in texts]
    np.testing.assert_allclose(scorer.score(texts), theirs, rtol=1e-5, atol=1e-5)
    assert scorer.contract is not None and scorer.contract.text_end == (None if pad == "<s>" else "")


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_plain_text_of_openrlhf(tmp_path: Path, kind: str) -> None:
    """EOS behind a blank, where it is missing, and none of the tokenizer's special tokens."""
    stacks.openrlhf(tmp_path / "theirs", kind)
    scorer, _ = imported(tmp_path / "theirs", tmp_path / "ours", template="none")
    tokenizer, eos = AutoTokenizer.from_pretrained(tmp_path / "theirs"), scorer.tokenizer.eos_token
    texts = [text if text.endswith(eos) else f"{text} {eos}" for text in TEXTS]
    assert plain_ids(scorer) == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_plain_text_of_deepspeed_chat(tmp_path: Path) -> None:
    stacks.deepspeed_chat(tmp_path / "theirs", llama_with_pad=True)
    scorer, _ = imported(tmp_path / "theirs", tmp_path / "ours", template="none", allow_pickle=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs")
    assert plain_ids(scorer) == tokenizer([f"{text}<|endoftext|>" for text in TEXTS])["input_ids"]


def test_plain_text_beside_chats_that_begin_otherwise_is_said(tmp_path: Path) -> None:
    """OpenRLHF's Llama has BOS from its template alone; one prefix cannot be both, and `--template none` is the other."""
    stacks.openrlhf(tmp_path / "theirs")
    _, said = imported(tmp_path / "theirs", tmp_path / "ours")
    assert "Give messages, which agree; for a model of plain text, import it with --template none" in line(said, "plain text")
    _, said = imported(tmp_path / "theirs", tmp_path / "plain", template="none")
    assert "as the trainer's did" in line(said, "plain text")


# --- folders as people have them ---


def as_plain_classifier(folder: Path, kind: str = "qwen3", **config: Any) -> PreTrainedModel:
    """transformers' own save of a tiny classifier, and its tokenizer's."""
    model = tiny_model(kind, seed=2, **config).eval()
    torch.nn.init.normal_(model.get_submodule("classifier" if kind == "bert" else "score").weight, std=0.7)
    model.save_pretrained(folder)
    TOKENIZERS[kind]().save_pretrained(folder)
    return model


@pytest.mark.parametrize("roberta_like", [False, True])
@pytest.mark.parametrize("template", ["plain", "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}[SEP]{% endif %}{% endfor %}\n"])
def test_an_encoder_gets_its_frame_from_the_tokenizer(tmp_path: Path, template: str, roberta_like: bool) -> None:
    """Whatever the template, and whether or not [SEP] is called EOS too: the ids of tokenizer(text), and [SEP] is not in the text that servers frame."""
    model = as_plain_classifier(tmp_path / "theirs", "bert")
    if roberta_like:
        stacks.edit_config(tmp_path / "theirs", name="tokenizer_config.json", bos_token="[CLS]", eos_token="[SEP]")
    scorer, _ = imported(tmp_path / "theirs", tmp_path / "ours", template=template, format="classifier")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "theirs", chat_template=read_chat_template(template))
    ids = [tokenizer(tokenizer.apply_chat_template(chat, tokenize=False))["input_ids"] for chat in CHATS]
    with torch.no_grad():
        np.testing.assert_allclose(scorer.score(CHATS), [model(torch.tensor([one])).logits.item() for one in ids], rtol=1e-5, atol=1e-5)
    golden = scorer.contract.golden[0]  # type: ignore[union-attr]
    assert scorer.tokenizer(golden.text)["input_ids"] == golden.ids
    with torch.no_grad():
        theirs = [model(torch.tensor([tokenizer(text)["input_ids"]])).logits.item() for text in TEXTS]
    np.testing.assert_allclose(scorer.score(TEXTS), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beyond", [None, 0, 1000])
def test_a_pad_id_outside_the_vocabulary(tmp_path: Path, beyond: int | None) -> None:
    """Llama 1's -1, and the id of a token whose row was never added: the rewards are those without padding."""
    model = as_plain_classifier(tmp_path / "theirs", "llama")
    rows = model.config.vocab_size
    pad_id = -1 if beyond is None else rows + beyond
    stacks.edit_config(tmp_path / "theirs", pad_token_id=pad_id)
    scorer, said = imported(tmp_path / "theirs", tmp_path / "ours")
    assert f"id {pad_id} of {rows} rows" in line(said, "pad")
    ids = scorer.encoder.encode([as_exchange(chat) for chat in CHATS])
    with torch.no_grad():
        np.testing.assert_allclose(scorer.score(CHATS), [model(torch.tensor([one])).logits.item() for one in ids], rtol=1e-5, atol=1e-5)


def test_two_outputs_that_config_does_not_name(tmp_path: Path) -> None:
    """transformers leaves its default names of two labels out of config.json."""
    model = as_plain_classifier(tmp_path / "theirs", num_labels=2)
    with pytest.raises(ConfigError, match=r"LABEL_0=-1 LABEL_1=1 \(the log-odds of LABEL_1\)"):
        imported(tmp_path / "theirs", tmp_path / "never")
    scorer, _ = imported(tmp_path / "theirs", tmp_path / "ours", weights={"LABEL_0": -1.0, "LABEL_1": 1.0})
    golden = scorer.contract.golden[0]  # type: ignore[union-attr]
    with torch.no_grad():
        outputs = model(torch.tensor([golden.ids])).logits[0]
    assert golden.score == pytest.approx(float(outputs[1] - outputs[0]), abs=1e-5)


@pytest.mark.parametrize("architectures", [["Qwen3ForCausalLM"], ["Qwen3ForRewardModel"], ...])
def test_architectures_that_say_nothing_of_the_head(tmp_path: Path, architectures: Any) -> None:
    as_plain_classifier(tmp_path / "theirs")
    stacks.edit_config(tmp_path / "theirs", architectures=architectures)
    with pytest.raises(ConfigError, match=r"score.weight is among its tensors.*--format: trl"):
        imported(tmp_path / "theirs", tmp_path / "never")
    scorer, _ = imported(tmp_path / "theirs", tmp_path / "ours", format="classifier")
    assert scorer.contract is not None and scorer.contract.architecture == "Qwen3ForSequenceClassification"


def test_an_adapter_whose_padding_was_eos(tmp_path: Path) -> None:
    """An adapter has no config to say so, its tokenizer does: batches of training were padded by it, and EOS was skipped."""
    from peft import LoraConfig, get_peft_model

    model = as_plain_classifier(tmp_path / "base", "llama")
    tokenizer = TOKENIZERS["llama"]()
    tokenizer.pad_token = tokenizer.eos_token
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    wrapped = get_peft_model(model, lora).eval()
    wrapped.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    wrapped.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    model.config.pad_token_id = tokenizer.pad_token_id
    ids = [tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in CHATS]
    with torch.no_grad():
        theirs = [wrapped(torch.tensor([one])).logits.item() for one in ids]
    for form in ("auto", "trl"):
        scorer, said = imported(tmp_path / "adapter", tmp_path / form, format=form)
        np.testing.assert_allclose(scorer.score(CHATS), theirs, atol=1e-5)
        assert "read before EOS" in line(said, "reward")


# --- what is refused ---


def test_folders_that_lack_something_say_what(tmp_path: Path) -> None:
    as_plain_classifier(tmp_path / "pointer")
    (tmp_path / "pointer" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="Git LFS pointer.*git lfs pull"):
        imported(tmp_path / "pointer", tmp_path / "never")
    as_plain_classifier(tmp_path / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "mute" / name).unlink()
    with pytest.raises(ModelError, match="has no tokenizer.*--tokenizer"):
        imported(tmp_path / "mute", tmp_path / "never")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "moved")}))
    TOKENIZERS["qwen3"]().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ModelError, match="moved: no such folder.*--base"):
        imported(tmp_path / "adapter", tmp_path / "never")
    as_plain_classifier(tmp_path / "seq2seq")
    stacks.edit_config(tmp_path / "seq2seq", is_encoder_decoder=True)
    with pytest.raises(ModelError, match="seq2seq: is an encoder-decoder"):
        imported(tmp_path / "seq2seq", tmp_path / "never")


def test_a_pickle_is_read_only_where_that_is_allowed_and_never_run(tmp_path: Path) -> None:
    stacks.deepspeed_chat(tmp_path / "theirs", llama_with_pad=True)
    with pytest.raises(ModelError, match="is a pickle.*--allow-pickle"):
        imported(tmp_path / "theirs", tmp_path / "ours", template="none")
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    (tmp_path / "theirs" / "pytorch_model.bin").write_bytes(pickle.dumps({"v_head.weight": Evil()}))
    with pytest.raises(ModelError, match="holds more than tensors, or is broken"):
        imported(tmp_path / "theirs", tmp_path / "ours", template="none", allow_pickle=True)
    assert not marker.exists() and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no such role') }}", "{{ messages.__class__.__mro__ }}"])
def test_a_template_that_does_not_run_ends_with_a_sentence(tmp_path: Path, template: str) -> None:
    stacks.openrlhf(tmp_path / "theirs")
    (tmp_path / "theirs" / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match=r"does not render a chat: .*--template"):
        imported(tmp_path / "theirs", tmp_path / "ours")


def test_the_base_of_an_adapter_may_be_no_pickle_either(tmp_path: Path) -> None:
    reward = stacks.llamafactory(tmp_path / "theirs", adapter_of=tmp_path / "base")
    torch.save(load_file(tmp_path / "base" / "model.safetensors"), tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"base/pytorch_model.bin is a pickle.*--allow-pickle"):
        imported(tmp_path / "theirs", tmp_path / "ours")
    agrees(imported(tmp_path / "theirs", tmp_path / "ours", allow_pickle=True)[0], reward)


def test_code_in_a_config_is_refused(tmp_path: Path) -> None:
    stacks.openrlhf(tmp_path / "theirs")
    for name in ("config.json", "tokenizer_config.json"):
        path = tmp_path / "theirs" / name
        before = path.read_text()
        path.write_text(json.dumps(json.loads(before) | {"auto_map": {"AutoModel": "evil.Model"}}))
        with pytest.raises(ModelError, match=f"{name}: auto_map asks for code"):
            imported(tmp_path / "theirs", tmp_path / "ours")
        path.write_text(before)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "..", "a\\b", "absent.safetensors"])
def test_an_index_names_files_of_its_own_folder(tmp_path: Path, name: str) -> None:
    stacks.openrlhf(tmp_path / "theirs")
    (tmp_path / "theirs" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    (tmp_path / "theirs" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"score.weight": name}}))
    with pytest.raises(ModelError, match="weight_map names"):
        imported(tmp_path / "theirs", tmp_path / "ours")


def broken(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    if how == "no head":
        tensors.pop("score.weight")
    elif how == "a layer is missing":
        tensors.pop("model.layers.1.mlp.up_proj.weight")
    elif how == "a tensor too many":
        tensors["score.0.weight"] = torch.ones(2, 2)
    elif how == "another shape":
        tensors["model.norm.weight"] = torch.ones(5)
    save_file(tensors, weights, metadata={"format": "pt"})
    if how == "torn":
        weights.write_bytes(weights.read_bytes()[:100])
    if how == "not json":
        (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no head", "the head was not saved"),
        ("a layer is missing", "1 are missing.*up_proj"),
        ("a tensor too many", "1 tensors have no place.*score.0.weight"),
        ("another shape", "do not fit|not a Llama"),
        ("torn", "not a readable safetensors file"),
        ("not json", "not readable JSON"),
    ],
)
def test_broken_checkpoints_end_with_a_sentence(tmp_path: Path, how: str, words: str) -> None:
    stacks.openrlhf(tmp_path / "theirs")
    broken(tmp_path / "theirs", how)
    with pytest.raises(ModelError, match=words):
        imported(tmp_path / "theirs", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_what_only_the_user_knows_is_asked_for(tmp_path: Path) -> None:
    stacks.deepspeed_chat(tmp_path / "theirs", llama_with_pad=True)
    with pytest.raises(ConfigError, match="no chat template.*--template"):
        imported(tmp_path / "theirs", tmp_path / "ours", allow_pickle=True)
    stacks.openrlhf(tmp_path / "two")
    save_file({"v_head.summary.weight": torch.ones(1, 32)}, tmp_path / "two" / "value_head.safetensors")
    with pytest.raises(ConfigError, match="llamafactory.*openrlhf.*--format"):
        imported(tmp_path / "two", tmp_path / "ours")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "a").touch()
    with pytest.raises(StorageError, match="not empty"):
        imported(tmp_path / "two", tmp_path / "ours", format="openrlhf")


def test_a_language_model_is_no_reward_model(tmp_path: Path, base_models: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="this is no reward model"):
        imported(base_models["qwen3"], tmp_path / "ours")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stacks.openrlhf(tmp_path / "theirs")
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    printed = capsys.readouterr().out
    assert "layout: openrlhf" in printed and "statistics: mean 1.5000" in printed and "golden examples score" in printed
    assert main(["import", str(tmp_path / "absent"), str(tmp_path / "x")]) == 4
    assert main(["import", str(tmp_path / "theirs"), str(tmp_path / "x"), "--weights", "a"]) == 2
