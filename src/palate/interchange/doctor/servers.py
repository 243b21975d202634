"""Servers: vLLM, SGLang, TEI, and verl's reward loop, which asks the first two. Rules ported from their sources (vLLM 0.33, SGLang 0.5.23, TEI 0d124dc)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from palate.interchange.doctor.checks import Check, Folder, one_label, pad_check
from palate.interchange.doctor.python_consumers import double_bos, loads_as_classifier

VLLM_SUFFIXES = (
    ("ForCausalLM", "generate"),
    ("ForConditionalGeneration", "generate"),
    ("ChatModel", "generate"),
    ("LMHeadModel", "generate"),
    ("ForTextEncoding", "embed"),
    ("EmbeddingModel", "embed"),
    ("ForSequenceClassification", "classify"),
    ("ForTokenClassification", "classify"),
    ("ForAudioClassification", "classify"),
    ("ForImageClassification", "classify"),
    ("ForVideoClassification", "classify"),
    ("ClassificationModel", "classify"),
    ("ForRewardModeling", "embed"),
    ("RewardModel", "embed"),
    ("Model", "embed"),
)
"""What vLLM makes of an architecture, by the first suffix that fits. Source: vllm/config/model.py, _SUFFIX_TO_DEFAULTS."""

SGLANG_CLASSES = {
    "LlamaForSequenceClassification",
    "Qwen2ForSequenceClassification",
    "Qwen3ForSequenceClassification",
    "Gemma2ForSequenceClassification",
    "BertForSequenceClassification",
    "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification",
}
"""Classifiers that SGLang has of its own (beside InternLM2's reward model). Source: sglang/srt/models."""

SGLANG_BIASED = {"Qwen2ForSequenceClassification", "Qwen3ForSequenceClassification"}
"""Those whose head is nn.Linear(bias=True) there: without score.bias in the file, the bias keeps its random start in (-1/sqrt(H), 1/sqrt(H))."""

TEI_TYPES = {"bert", "roberta", "xlm-roberta", "deberta-v2", "distilbert", "modernbert", "new", "gte"}
"""Model types with a classifier in TEI's Rust backend. Qwen, Mistral, Gemma and other decoders stop there with an error. Source: backends/candle/src/lib.rs."""


def vllm_task(architecture: str) -> str:
    """generate, embed or classify, as vLLM chooses without flags."""
    return next((task for suffix, task in VLLM_SUFFIXES if architecture.endswith(suffix)), "generate")


def vllm_activation(config: Mapping[str, Any]) -> str:
    """What vLLM applies to the outputs of a classifier: identity, sigmoid, softmax, or a torch activation by name. Source: get_act_fn of its pooler."""
    if config.get("problem_type") == "regression":
        return "identity"
    name = (config.get("sentence_transformers") or {}).get("activation_fn") or config.get("sbert_ce_default_activation_function")
    if name:
        last = str(name).rpartition(".")[2].lower()
        return last
    labels = len(config.get("id2label") or {"0": "", "1": ""})
    return "sigmoid" if labels < 2 else "softmax"


def vllm_checks(folder: Folder) -> Iterator[Check]:
    if folder.is_adapter:
        yield Check("loads", False, "an adapter of a classifier is not served; " + folder.merging)
        return
    task = vllm_task(folder.architecture)
    yield Check(
        "task", task == "classify", f"{folder.architecture} is served to {task}; *ForSequenceClassification is served to classify (others give vectors)"
    )
    activation = vllm_activation(folder.config)
    yield Check(
        "activation",
        activation == "identity",
        f'{activation}; raw rewards need problem_type regression in config.json, or --hf-overrides \'{{"problem_type": "regression"}}\', '
        'or "use_activation": false in each request',
    )
    yield pad_check(folder, "vLLM reads the true last token, transformers skips an EOS that is padding: with pad == EOS the two disagree")
    yield Check(
        "bias", True, "score.bias is read by 0.33 and later; older ones refuse the file" if folder.has_bias else "the head has none, as every version expects"
    )
    yield double_bos(folder, '/classify with "input" text (not with "messages")')
    yield _vllm_ids(folder)
    yield Check("head", True, "is computed in float32 (head_dtype); a 16-bit backbone still rounds: expect differences of 1e-2 to 1e-1 to float32 rewards")


def _vllm_ids(folder: Folder) -> Check:
    """Of its two ways in, which give the ids that the contract records: "messages" add no special tokens, "input" adds the tokenizer's own."""
    remedy = 'Send token ids as "input", or use `palate serve`'
    chat, text = folder.same_ids("trl", remedy), folder.same_text()
    if folder.contract is None or not folder.contract.golden:
        return chat
    if folder.tokenizer is None or not folder.tokenizer.chat_template:  # "messages" cannot be sent
        return text._replace(name="ids", advice=f'send the golden form as "input": {text.advice}' if text.passed else f"{text.advice}. {remedy}")
    if chat.passed and text.passed:
        return Check("ids", True, 'send "messages", or the golden form as "input"')
    if chat.passed or text.passed:
        return Check("ids", True, 'send "messages", not "input"' if chat.passed else 'send the golden form as "input"; "messages" lose the special tokens')
    return chat


def sglang_checks(folder: Folder) -> Iterator[Check]:
    if folder.is_adapter:
        yield Check("loads", False, "an adapter of a classifier is not served; " + folder.merging)
        return
    own = folder.architecture in SGLANG_CLASSES
    yield Check(
        "class",
        own,
        f"{folder.architecture}; classes of its own: {', '.join(sorted(SGLANG_CLASSES))}. Others go through transformers, unproven: `palate serve` takes them",
    )
    if folder.architecture in SGLANG_BIASED:
        bound = 1 / math.sqrt(folder.hidden_size or 1)
        yield Check(
            "bias",
            folder.has_bias,
            "score.bias is there"
            if folder.has_bias
            else f"its class starts the missing score.bias at random: rewards move by one constant, up to {bound:.2g}. `palate export --format hf --zero-bias`",
        )
    yield pad_check(folder, "it reads the true last token, transformers skips an EOS that is padding: with pad == EOS the two disagree")
    yield double_bos(folder, '/classify with "text"')
    yield Check("endpoint", True, "--is-embedding; /classify and /v1/embeddings give raw rewards, /v1/classify a softmax, which is 1 for one label")


def tei_checks(folder: Folder) -> Iterator[Check]:
    if folder.is_adapter:
        yield Check("loads", False, "adapters are not served; " + folder.merging)
        return
    yield Check("architecture", folder.architecture.endswith("Classification"), f"{folder.architecture}; it looks for a name that ends with Classification")
    yield Check(
        "backend",
        folder.model_type in TEI_TYPES,
        f"model_type {folder.model_type}; its Rust backend classifies {', '.join(sorted(TEI_TYPES))}; serve decoders with `palate serve`, vLLM or SGLang",
    )
    both = bool(folder.config.get("id2label")) and bool(folder.config.get("label2id"))
    yield Check("label maps", both, "id2label and label2id must both be in config.json" + ("" if both else ", and are not"))
    yield Check("fast tokenizer", (folder.path / "tokenizer.json").is_file(), "it reads tokenizer.json alone")
    yield one_label(folder, "one label makes it a reranker, for /rerank and /predict; several are classes")
    yield Check("raw scores", True, 'sigmoid unless the request says "raw_scores": true')


def verl_checks(folder: Folder) -> Iterator[Check]:
    """Its reward loop posts rendered text without BOS to vLLM's /classify or SGLang's /v1/embeddings; its critic is a token classifier."""
    yield loads_as_classifier(folder)
    raw = folder.config.get("problem_type") == "regression"
    yield Check(
        "raw scores",
        raw or folder.is_adapter,
        'it posts "activation": false, a name that vLLM no longer reads: raw only if config.json says problem_type regression',
    )
    written, put = folder.bos()
    lost = written and not put and bool(folder.framing())
    yield Check(
        "BOS",
        not lost,
        "it takes BOS off the text and counts on the server's tokenizer to put it"
        + (", which this tokenizer does not: the model would see none. Use verl_score of palate.serving.adapters" if lost else ", which holds here"),
    )
    yield pad_check(folder, "its workers pad by the tokenizer")
    encoder = any(name.startswith("classifier.") for name in folder.tensors)
    critic = (
        "its critic and FSDP reward worker need a decoder" if encoder else "`palate export --format token-classification` for its critic and FSDP reward worker"
    )
    yield Check("critic", True, critic)
