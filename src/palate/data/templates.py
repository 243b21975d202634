"""Tokenizers made ready: BOS and EOS as they stand, a chat template that ends at EOS, and a pad token that is never EOS."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from palate.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAD_CANDIDATES = ("<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>")
"""Pad tokens that public tokenizers already carry; the first one present is taken before a new one is added."""

PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if not loop.last or add_generation_prompt %}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""`chat_template: plain`: "user: ...", "assistant: ..." paragraphs, for models that come without a template (encoders, base models)."""

CLOSED_MARK = "{#- ends at EOS -#}"
CLOSING = (
    "{% endset %}{% if add_generation_prompt %}{{ reward_text }}{% else %}{% set reward_text = reward_text.rstrip() %}{{ reward_text }}"
    "{% if eos_token and not reward_text.endswith(eos_token) %}{{ eos_token }}{% endif %}{% endif %}"
)
"""Wrapped around a chat template for training: the same text, ending in EOS and nothing after it (generation prompts stay as they were)."""


class Rules(NamedTuple):
    """How a tokenizer frames one sequence."""

    prefix: list[int]  # BOS / [CLS], as the tokenizer itself puts it
    eos_id: int
    bos_text: str | None


def framing_rules(tokenizer: PreTrainedTokenizerBase) -> Rules:
    """BOS and EOS of a tokenizer: the prefix that it puts itself, and EOS (for encoders: [SEP])."""
    eos_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if eos_id is None:
        raise ModelError(f"the tokenizer of {tokenizer.name_or_path!r} has neither an EOS nor a SEP token; set eos_token to the token that ends a response")
    probe = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(framed)) if framed[i : i + len(probe)] == probe), 0)
    bos_text = tokenizer.bos_token if tokenizer.bos_token_id is not None else tokenizer.cls_token
    prefix = [] if start == 0 else list(framed[:start])
    if not prefix and tokenizer.bos_token_id is not None and tokenizer.chat_template and tokenizer.bos_token and "bos_token" in str(tokenizer.chat_template):
        prefix = [tokenizer.bos_token_id]  # the template writes BOS where the tokenizer does not (Gemma 3 style): keep it, once
    return Rules(prefix, eos_id, bos_text)


FIXED_DATE = "{% macro strftime_now(format) %}26 Jul 2024{% endmacro %}"
"""Stands in for the clock in templates that print today's date (the date is Llama 3.2's own fallback): a reward must not change overnight."""


def closed_template(template: Any) -> str:
    """The template, ending in EOS and nothing after it, and without a clock. Of several named templates the default one is taken."""
    text = template["default"] if isinstance(template, dict) else str(template)
    if text.startswith(CLOSED_MARK):
        return text
    clock = FIXED_DATE if "strftime_now" in text else ""
    return f"{CLOSED_MARK}{clock}{{% set reward_text %}}{text}{CLOSING}"


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat_template: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
    close: bool = True,
) -> PreTrainedTokenizerBase:
    """Set template, EOS and a pad token that is never EOS; pads on the right. The embedding is resized later if a token was added.

    `close`: make the chat template end at EOS (for training; a model of another trainer keeps its template as it is).
    """
    for name, token in (("eos_token", eos_token), ("pad_token", pad_token)):
        if token is not None and token not in tokenizer.get_vocab():
            raise ModelError(f"{name} {token!r} is not in the vocabulary of {tokenizer.name_or_path!r} ({len(tokenizer)} tokens)")
    if eos_token is not None:
        tokenizer.eos_token = eos_token
    if pad_token is not None:
        tokenizer.pad_token = pad_token
    if chat_template is not None:
        tokenizer.chat_template = read_chat_template(chat_template)
    if close and tokenizer.chat_template:
        tokenizer.chat_template = closed_template(tokenizer.chat_template)
    eos_id = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == eos_id:
        if pad_token is not None:
            raise ModelError(
                f"pad_token {pad_token!r} is the EOS token: padding could not be told from an end; choose another, or leave it unset and one is added"
            )
        vocabulary = tokenizer.get_vocab()
        known = next((token for token in PAD_CANDIDATES if token in vocabulary and vocabulary[token] != eos_id), None)
        if known is not None:
            tokenizer.pad_token = known
        else:
            tokenizer.add_special_tokens({"pad_token": PAD_CANDIDATES[0]})
    tokenizer.padding_side = "right"
    return tokenizer


def read_chat_template(value: str) -> str:
    """`plain`, a .jinja / .j2 file, the template of another model (a folder or hub id), or a template as it stands."""
    if value == "plain":
        return PLAIN_CHAT_TEMPLATE
    if value.endswith((".jinja", ".j2")):
        path = Path(value)
        if not path.is_file():
            raise ConfigError(f"model.chat_template: no file {value}; expected a .jinja file, `plain`, a model, or a template")
        return path.read_text(encoding="utf-8")
    if "{" in value:
        return value
    from transformers import AutoTokenizer

    try:
        template = AutoTokenizer.from_pretrained(value).chat_template
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.chat_template is {value!r}; expected `plain`, a .jinja file, a model, or a template with {{{{ }}}}") from error
    if not template:
        raise ConfigError(f"model.chat_template: the tokenizer of {value} has no chat template")
    return closed_template(template)
