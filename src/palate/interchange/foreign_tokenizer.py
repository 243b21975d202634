"""The tokenizer of another stack made ours: a template that ends as its texts did, pad and EOS told apart, BOS only where the trainer had it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerBase

from palate.data.templates import framing_rules, prepare_tokenizer, read_chat_template
from palate.data.tokenization import Encoder
from palate.errors import ConfigError, ModelError
from palate.interchange.conventions import DEEPSPEED_CHAT_TEMPLATE, Trainer, ending_template, trainer_ids
from palate.interchange.examples import default_examples
from palate.interchange.import_options import ImportOptions, Say
from palate.types import Exchange


def give_template(tokenizer: PreTrainedTokenizerBase, options: ImportOptions, say: Say) -> None:
    """The chat template that the trainer used: the tokenizer's own, or the one that the user names."""
    if options.template == "none":
        tokenizer.chat_template = None
        say("template: none, as --template says; plain text alone can be scored")
    elif options.template is not None:
        tokenizer.chat_template = DEEPSPEED_CHAT_TEMPLATE if options.template == "deepspeed-chat" else read_chat_template(options.template)
        say(f"template: {options.template}, as --template says")
    elif tokenizer.chat_template:
        say("template: the tokenizer's own")
    else:
        raise ConfigError(
            "the tokenizer has no chat template, so nothing says how a dialogue was written. Give it with --template FILE.jinja, a model that has it, `plain`, "
            "or `deepspeed-chat` (Human: / Assistant:); `none` for a model that is given plain text alone"
        )


def build_tokenizer(trainer: Trainer, options: ImportOptions, say: Say) -> PreTrainedTokenizerBase:
    """The trainer's tokenizer with a template that ends as its texts did, a pad token that is not EOS, and BOS only where the trainer had it."""
    theirs = trainer.tokenizer
    tokenizer = copy.deepcopy(theirs)
    template = theirs.chat_template
    if isinstance(template, dict):
        say(f"template: of {', '.join(template)} the one called default")
        template = template["default"]
    if template:
        tokenizer.chat_template = ending_template(template, trainer)
    if trainer.before_eos:
        left_out = "; the chat template leaves that EOS out" if template else ""
        say(f"reward: read before EOS, since EOS was the trainer's padding and was skipped as such{left_out}")
    prepare_tokenizer(tokenizer, eos_token=options.eos_token, pad_token=options.pad_token, close=False)
    if tokenizer.pad_token != theirs.pad_token:
        how = (
            "as --pad-token says" if options.pad_token else "already in the vocabulary" if tokenizer.pad_token in theirs.get_vocab() else "a token added for it"
        )
        was = theirs.pad_token or "none"
        say(f"pad: {tokenizer.pad_token} ({how}) in place of {was}{', which is EOS' if was == theirs.eos_token else ''}")
    return _with_bos_as_trained(tokenizer, trainer, say)


def _with_bos_as_trained(tokenizer: Any, trainer: Trainer, say: Say) -> PreTrainedTokenizerBase:
    """Where the trainer gave its texts no BOS although the tokenizer puts one, the tokenizer stops putting it."""
    prefix = framing_rules(tokenizer).prefix
    made = trainer_ids(trainer, default_examples(bool(tokenizer.chat_template))[0])
    if made is None or not prefix or made[: len(prefix)] == prefix:
        return tokenizer
    say(f"BOS: the trainer put none in front, so the tokenizer's own ({' '.join(tokenizer.convert_ids_to_tokens(prefix))}) is turned off")
    for name in ("add_bos_token", "add_eos_token"):
        if name in tokenizer.init_kwargs:
            setattr(tokenizer, name, False)
            tokenizer.init_kwargs[name] = False
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return tokenizer


def check_ids(encoder: Encoder, trainer: Trainer, examples: Sequence[Exchange], say: Say) -> None:
    """Our ids against the trainer's: what it was trained on must agree; where plain text cannot beside chats, that is said."""
    tokens = encoder.tokenizer.convert_ids_to_tokens
    for example in examples:
        made, ours = trainer_ids(trainer, example), encoder.encode([example])[0]
        if made is not None and ours != made and not (isinstance(example.response, str) and encoder.tokenizer.chat_template):
            at = next((i for i, (a, b) in enumerate(zip(ours, made)) if a != b), min(len(ours), len(made)))  # noqa: B905
            raise ModelError(
                f"the trainer made {len(made)} tokens of an example, this tokenizer makes {len(ours)}; they part at {at}: "
                f"{tokens(made[at : at + 4])} and {tokens(ours[at : at + 4])}. Give the template that it was trained with (--template), or another --format"
            )
    plain = default_examples(chat=False)[0]
    made, ours = trainer_ids(trainer, plain), encoder.encode([plain])[0]
    if made is None:
        say(f"plain text: {trainer.name} takes chats alone, so nothing says how it ends; here it gets EOS")
    elif made == ours:
        say(f"plain text: begins {tokens(ours[:2])} and ends {tokens(ours[-2:])}, as the trainer's did")
    else:
        say(
            f"plain text: the trainer's began {tokens(made[:2])} and ended {tokens(made[-2:])}; here, as chats have it, {tokens(ours[:2])} and "
            f"{tokens(ours[-2:])}. Give messages, which agree; for a model of plain text, import it with --template none"
        )
