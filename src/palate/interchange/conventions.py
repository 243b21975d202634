"""What each trainer fed its model for one exchange, up to the token that it read the reward at; and a chat template that writes the same.

Trainers differ in what ends a text, in who puts BOS, and in how they find the last token. None of it is in their checkpoints. Where padding is
found by its id and that id is EOS, the token read is the one *before* EOS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError

from palate.data.templates import CLOSED_MARK
from palate.data.tokenization import DEFAULT_SEPARATOR
from palate.errors import ModelError
from palate.types import Exchange

Ending = Literal["as it stands", "EOS", "a space and EOS", "the end text"]
BOS = Literal["template", "tokenizer", "always"]
Read = Literal["last", "last that is not pad", "before the first pad"]

ENDOFTEXT = "<|endoftext|>"
"""DeepSpeed-Chat's `end_of_conversation_token`: text behind every response, whatever the tokenizer makes of it (--end-text names another)."""


class Convention(NamedTuple):
    """How chats and plain texts end, and who puts BOS in front of them; `text` None: the trainer takes no plain text, or nothing says how."""

    chat: Ending
    chat_bos: BOS
    text: Ending | None
    text_bos: BOS
    read: Read
    source: str
    separator: str = ""  # between a plain prompt and its response


CONVENTIONS: dict[str, Convention] = {
    "trl": Convention("as it stands", "template", "EOS", "tokenizer", "last that is not pad", "trl/trainer/reward_trainer.py, 1.16"),
    "open-instruct": Convention("as it stands", "template", None, "template", "before the first pad", "open_instruct/model_utils.py, get_reward"),
    "nemo-rl": Convention("EOS", "always", None, "always", "last that is not pad", "nemo_rl/data/llm_message_utils.py, get_formatted_message_log"),
    "openrlhf": Convention("a space and EOS", "template", "a space and EOS", "template", "last", "openrlhf/datasets/reward_dataset.py"),
    "llamafactory": Convention("as it stands", "template", None, "template", "last", "llamafactory/train/rm/trainer.py"),
    "deepspeed-chat": Convention("the end text", "tokenizer", "the end text", "tokenizer", "before the first pad", "dschat/utils/model/reward_model.py"),
    "classifier": Convention(
        "as it stands", "template", "as it stands", "tokenizer", "last that is not pad", "transformers, *ForSequenceClassification", DEFAULT_SEPARATOR
    ),
    "adapter": Convention("as it stands", "template", "as it stands", "tokenizer", "last that is not pad", "peft, TaskType.SEQ_CLS", DEFAULT_SEPARATOR),
}
"""By trainer, or by what transformers does where the trainer is not known."""

DEEPSPEED_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}{{ '\\n\\nAssistant: ' }}{% else %}{{ '\\n\\nHuman: ' }}{% endif %}"
    "{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
"""`--template deepspeed-chat`: the dialogues of its default data, Dahoas/rm-static."""


class Trainer(NamedTuple):
    """A trainer as it stood: its conventions, its tokenizer, and the id that it took for padding (None: none)."""

    name: str
    tokenizer: Any
    pad_id: int | None
    end_text: str = ENDOFTEXT

    @property
    def convention(self) -> Convention:
        """The table's, except that encoders get [CLS] and [SEP] from their tokenizer, as pipelines and TEI give them."""
        found = CONVENTIONS[self.name]
        return found._replace(chat_bos="tokenizer") if self.name in ("classifier", "adapter") and self.tokenizer.cls_token else found

    @property
    def before_eos(self) -> bool:
        """Whether EOS was taken for padding, so that the token before it was read."""
        return self.convention.read != "last" and self.pad_id is not None and self.pad_id == self.tokenizer.eos_token_id


def trainer_of(name: str, tokenizer: Any, config: Mapping[str, Any], end_text: str = ENDOFTEXT) -> Trainer:
    """The trainer of a checkpoint with this tokenizer and config.json.

    Transformers' classifiers pad by the config's id; where there is no config, beside an adapter, the tokenizer's was written into it. DeepSpeed-Chat pads
    by EOS whatever the tokenizer says, except that Llama's keeps its own pad token.
    """
    read = CONVENTIONS[name].read
    if read == "last that is not pad" and config:
        pad = config.get("pad_token_id", (config.get("text_config") or {}).get("pad_token_id"))
    elif name == "deepspeed-chat" and config.get("model_type") != "llama":
        pad = tokenizer.eos_token_id
    else:
        pad = tokenizer.pad_token_id
    return Trainer(name, tokenizer, pad, end_text)


def trainer_ids(trainer: Trainer, exchange: Exchange) -> list[int] | None:
    """Ids of an exchange as the trainer made them, up to the token that it read. None: it takes no such data, or nothing says how."""
    convention, tokenizer = trainer.convention, trainer.tokenizer
    if isinstance(exchange.response, str):
        if convention.text is None:
            return None
        text, ending, bos = f"{exchange.prompt}{convention.separator}{exchange.response}", convention.text, convention.text_bos
    else:
        text, ending, bos = render(tokenizer, exchange), convention.chat, convention.chat_bos
    text = ended(text, ending, tokenizer.eos_token or "", trainer.end_text)
    if bos == "always" and tokenizer.bos_token and not text.startswith(tokenizer.bos_token):
        text = tokenizer.bos_token + text
    if bos == "tokenizer" and tokenizer.bos_token:  # a template that writes BOS as well is of a later day: the trainer's texts had it once
        text = text.removeprefix(tokenizer.bos_token)
    behind = 2 + (len(tokenizer(trainer.end_text, add_special_tokens=False)["input_ids"]) if ending == "the end text" else 0)
    return _read_from(tokenizer(text, add_special_tokens=bos == "tokenizer")["input_ids"], trainer.pad_id, convention.read, behind)


def text_end(trainer: Trainer) -> str | None:
    """What stands behind a plain text when the trainer reads it, the tokenizer's own end included. None: EOS or [SEP] once, or nothing says what."""
    convention, tokenizer = trainer.convention, trainer.tokenizer
    if convention.text is None:
        return None
    eos = tokenizer.eos_token or ""
    end = {"as it stands": "", "EOS": eos, "a space and EOS": f" {eos}", "the end text": trainer.end_text}[convention.text]
    if trainer.before_eos:
        end = end.removesuffix(eos)
    if convention.text_bos == "tokenizer":
        end += own_end(tokenizer)
    return None if end and end in (tokenizer.eos_token, tokenizer.sep_token) else end


def own_end(tokenizer: Any) -> str:
    """The special tokens that a tokenizer itself puts behind a text: [SEP] of encoders, mostly nothing of decoders."""
    framed, bare = (tokenizer("a", add_special_tokens=on)["input_ids"] for on in (True, False))
    start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
    return "".join(tokenizer.convert_ids_to_tokens(framed[start + len(bare) :]))


def render(tokenizer: Any, exchange: Exchange) -> str:
    """A chat as the tokenizer's own template writes it. Raises ModelError for a template that does not run on one question and its answer."""
    messages: list[Any] = [*exchange.prompt, *exchange.response]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False))
    except TemplateError as error:
        raise ModelError(f"the chat template of {tokenizer.name_or_path!r} does not render a chat: {error}. Give another with --template") from error


def ended(text: str, ending: Ending, eos: str, end_text: str) -> str:
    if ending == "the end text":
        return text if text.endswith(end_text) else text + end_text
    if ending == "EOS":
        return text if text.rstrip("\n").endswith(eos) else text + eos
    if ending == "a space and EOS":
        text = text.rstrip("\n")
        return text if text.endswith(eos) else f"{text} {eos}"
    return text


def _read_from(ids: Sequence[int], pad: int | None, read: Read, behind: int) -> list[int]:
    """The ids without what the trainer takes for padding at their end. `behind`: as many tokens may be EOS, a line break and the end text."""
    ids = list(ids)
    if read == "last that is not pad":
        while len(ids) > 1 and ids[-1] == pad:
            ids.pop()
    elif read == "before the first pad" and len(ids) > behind and pad in ids[-behind:]:
        # the end of the response; what stands behind it, a line break or the end text, is not read either
        del ids[ids.index(pad, len(ids) - behind) :]
    return ids


def ending_template(template: str, trainer: Trainer) -> str:
    """The template, ending as the trainer's texts did, and without the EOS that it took for padding."""
    convention, end = trainer.convention, _quoted(trainer.end_text)
    lines = {
        "as it stands": "",
        "EOS": "{% if not reward_text.rstrip('\\n').endswith(eos_token) %}{% set reward_text = reward_text + eos_token %}{% endif %}",
        "a space and EOS": (
            "{% set reward_text = reward_text.rstrip('\\n') %}"
            "{% if not reward_text.endswith(eos_token) %}{% set reward_text = reward_text + ' ' + eos_token %}{% endif %}"
        ),
        "the end text": f"{{% if not reward_text.endswith({end}) %}}{{% set reward_text = reward_text + {end} %}}{{% endif %}}",
    }[convention.chat]
    if trainer.before_eos and convention.read == "before the first pad":
        seen = "{% set reward_text = reward_text.rstrip('\\n').removesuffix(eos_token) %}"
        lines = f"{{% if not reward_text.rstrip('\\n').endswith(eos_token) %}}{lines}{{% endif %}}{seen}"  # behind the template's own EOS nothing is read
    elif trainer.before_eos:
        lines += "{% set reward_text = reward_text.removesuffix(eos_token) %}"
    start = "{{ bos_token if bos_token else '' }}" if convention.chat_bos == "always" and "bos_token" not in template else ""
    # where the tokenizer ended the trainer's chats, it ends those of pipelines and servers too: the text leaves [SEP] out, and our encoder puts its id
    mark = CLOSED_MARK + "{{ '' }}" if convention.chat_bos == "tokenizer" and own_end(trainer.tokenizer) else ""
    if not lines and not start:
        return mark + template
    return f"{mark}{{% set reward_text %}}{start}{template}{{% endset %}}{{% if not add_generation_prompt %}}{lines}{{% endif %}}{{{{ reward_text }}}}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
