"""Exchanges to token ids: chat template or plain text, BOS once, EOS at every end, a length policy with exact accounting.

The same encoder runs in training, evaluation, scoring and serving, and is recorded in the checkpoint's contract, so that a reward never
depends on which tool asked for it. What it guarantees for every sequence:

- the tokenizer's own prefix (BOS, [CLS]) stands once at the front, whatever the template wrote;
- the end-of-sequence token stands at the end: the chat template is closed (`closed_template`), so that blanks after its last turn go and EOS
  follows where the template leaves it out. The closed template is saved with the checkpoint, and every other tool renders the same ids;
- a response is never cut. A sequence longer than `max_length` is dropped, loses the start of its *prompt*, or is an error, as the policy says.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, count, islice
from operator import ne
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from palate.data.divergence import compared_span
from palate.data.pairing import against_off_topic
from palate.data.supervision import PAIRWISE, facts_of, lack, rejoined, supervised, value_problem
from palate.data.templates import CLOSED_MARK, framing_rules
from palate.errors import ConfigError, DataError, ModelError, RowError
from palate.types import Conversation, Exchange, PreferenceGroup, Supervision, TokenIds, content_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LENGTH_POLICIES = ("drop", "truncate_prompt", "error")
DEFAULT_SEPARATOR = "\n\n"
"""Stands between a plain-text prompt and its response where neither brings a blank of its own ("...a poem." + "Roses" would fuse two words)."""

GROUPS_PER_CALL = 256  # groups handed to the tokenizer at once: fast tokenizers spread one call over threads


class EncodedGroup(NamedTuple):
    """Token ids of K responses (whole sequences, prompt included) and what is known about them."""

    token_ids: list[list[int]]
    group: PreferenceGroup  # its comparisons are those to train on, its ranks and ratings as the loss reads them
    cut: int  # prompt tokens removed from the left over all responses
    starts: tuple[int, ...] = ()  # index of each response's first own token, where the loss asks for it
    step_ends: tuple[int, ...] = ()  # index of the token that ends each step of the one response


@dataclass
class EncodeReport:
    """Exact accounting of one pass: groups in, kept, cut, and dropped by reason, for each source."""

    groups: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    dropped: dict[str, Counter[str]] = field(default_factory=dict)  # source -> reason -> groups
    tokens: int = 0
    unique_tokens: int = 0  # with the prefix that a group's responses share counted once
    longest: int = 0
    facts: Counter[str] = field(default_factory=Counter)  # what the kept groups hold: comparisons, ties, margins, rankings, rating <attribute>, steps

    def drop(self, source: str, reason: str, count: int = 1) -> None:
        self.dropped.setdefault(source, Counter())[reason] += count

    def add(self, other: EncodeReport) -> None:
        """The account of another pass, added to this one."""
        for name in ("groups", "kept", "cut", "facts"):
            getattr(self, name).update(getattr(other, name))
        for source, reasons in other.dropped.items():
            self.dropped.setdefault(source, Counter()).update(reasons)
        self.tokens += other.tokens
        self.unique_tokens += other.unique_tokens
        self.longest = max(self.longest, other.longest)

    def as_dict(self) -> dict[str, Any]:
        return {
            source: {"groups": self.groups[source], "kept": self.kept[source], "cut": self.cut[source], "dropped": dict(self.dropped.get(source, {}))}
            for source in self.groups
        } | {"tokens": self.tokens, "unique_tokens": self.unique_tokens, "longest": self.longest}

    def summary(self) -> str:
        parts = []
        for source in self.groups:
            dropped = self.dropped.get(source, Counter())
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
            parts.append(
                f"{source}: {self.kept[source]} of {self.groups[source]} groups kept"
                + (f", {self.cut[source]} with a cut prompt" if self.cut[source] else "")
                + (f"; dropped: {reasons}" if reasons else "")
            )
        return "\n".join(parts)


class Encoder:
    """Turns exchanges into token ids under one set of rules (a plain object: tokenizer, length policy, separator).

    `text_end`: what stands behind plain text, in a model of another trainer; None, as here, is EOS.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        length_policy: str = "drop",
        separator: str = DEFAULT_SEPARATOR,
        text_end: str | None = None,
    ):
        if length_policy not in LENGTH_POLICIES:
            raise ConfigError(f"length_policy is {length_policy!r}, expected one of {', '.join(LENGTH_POLICIES)}")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.length_policy = length_policy
        self.separator = separator
        self.text_end = text_end
        self.rules = framing_rules(tokenizer)
        self.closed = bool(tokenizer.chat_template) and str(tokenizer.chat_template).startswith(CLOSED_MARK)
        if max_length is not None and max_length < len(self.rules.prefix) + 2:
            raise ConfigError(f"max_length is {max_length}; a sequence needs room for {len(self.rules.prefix) + 2} tokens at least")

    # --- text ---

    def render(self, exchange: Exchange) -> str:
        """The text of an exchange as the model reads it, without the tokenizer's own BOS; EOS as text where the tokenizer does not add it."""
        text = self._body(exchange)
        if self.rules.bos_text and text.startswith(self.rules.bos_text):
            text = text.removeprefix(self.rules.bos_text)
        return text

    def _body(self, exchange: Exchange) -> str:
        prompt, response = exchange.prompt, exchange.response
        if isinstance(prompt, str) and isinstance(response, str):
            text = prompt + self._joint(prompt, response) + response
            return text if self.text_end is None or text.endswith(self.text_end.lstrip(" ")) else text + self.text_end
        if isinstance(prompt, TokenIds) or isinstance(response, TokenIds):
            raise DataError("token ids have no text; they are used as they are")
        messages = [*_as_messages(prompt, "user"), *_as_messages(response, "assistant")]
        return self._apply_template(messages, exchange.template_args)

    def _joint(self, prompt: str, response: str) -> str:
        if not prompt or not response or prompt[-1].isspace() or response[0].isspace():
            return ""
        return self.separator

    def _apply_template(self, messages: list[Mapping[str, Any]], args: Mapping[str, Any], *, generation: bool = False) -> str:
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"the data holds chat messages, but the tokenizer of {self.tokenizer.name_or_path!r} has no chat template. "
                "Set model.chat_template to a .jinja file, to a template, or to `plain` (role: content paragraphs)."
            )
        try:
            text = self.tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=generation, **args)
        except TemplateError as error:  # templates refuse what they cannot say: a system role, two user turns in a row
            raise RowError("refused by the chat template", str(error)) from error
        assert isinstance(text, str)
        return text

    # --- ids ---

    def encode(self, exchanges: Sequence[Exchange]) -> list[list[int]]:
        """Token ids of each exchange, at full length (the length policy is applied by `fit`)."""
        texts = [None if isinstance(e.response, TokenIds) else self._body(e) for e in exchanges]
        plain = [text for text in texts if text is not None]
        ids = iter(self.tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else [])
        return [list(e.response) if isinstance(e.response, TokenIds) else self._frame(next(ids), e) for e in exchanges]

    def _frame(self, ids: list[int], exchange: Exchange) -> list[int]:
        ids = self._with_prefix(ids)
        # A model of another trainer saw what its chat template itself writes, which was never closed, and plain text as its contract has it.
        plain = isinstance(exchange.prompt, str) and isinstance(exchange.response, str)
        closes = self.text_end is None if plain else self.closed
        return [*ids, self.rules.eos_id] if closes and ids[-1:] != [self.rules.eos_id] else ids

    def _with_prefix(self, ids: list[int]) -> list[int]:
        """BOS in front, once: a template may have written it into the text."""
        prefix = self.rules.prefix
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def prompt_ids(self, exchange: Exchange) -> list[int]:
        """Token ids of the prompt alone, as a response would be written behind it (a chat: with the template's opening of the answer)."""
        if isinstance(exchange.prompt, str) and isinstance(exchange.response, str):
            text = exchange.prompt
        else:
            text = self._apply_template(_as_messages(exchange.prompt, "user"), exchange.template_args, generation=True)
        return self._with_prefix(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def prompt_length(self, exchange: Exchange, ids: Sequence[int]) -> int:
        """How many leading ids belong to the prompt alone (found on ids: sharing ends where the prompt's own ids differ)."""
        if isinstance(exchange.response, TokenIds) or not exchange.prompt:
            return len(self.rules.prefix)
        return common_prefix([self.prompt_ids(exchange), ids])

    def fit(self, ids: list[int], prompt_length: int, excess: int | None = None) -> list[int] | None:
        """`ids` within `max_length` by cutting the prompt's start (after BOS); None when the response alone is too long.

        `excess`: tokens to cut, where more than its own are (sides that are compared token by token keep one prompt).
        """
        if excess is None:
            excess = len(ids) - (self.max_length or len(ids))
        if excess <= 0:
            return ids
        first = len(self.rules.prefix)
        return ids[:first] + ids[first + excess :] if prompt_length - first >= excess else None

    # --- groups ---

    def encode_groups(
        self, groups: Iterable[PreferenceGroup], report: EncodeReport, *, ties: str = "drop", supervision: Supervision = PAIRWISE
    ) -> Iterator[EncodedGroup]:
        """Encoded training groups; what is left out is counted in `report` by source and reason.

        A group keeps its responses only if all fit (a comparison needs both sides), and is kept if it holds anything that `supervision` asks for.
        `ties`: see `training_comparisons`.
        """
        groups = (rejoined(group, supervision) for group in groups)
        while chunk := list(islice(groups, GROUPS_PER_CALL)):
            try:
                encoded = iter(self.encode([exchange for group in chunk for exchange in group.exchanges()]))
                rows: list[list[list[int]] | None] = [[next(encoded) for _ in group.responses] for group in chunk]
            except RowError:  # one of the chunk: encode them one by one and count those that the template refuses
                rows = [self._encode_alone(group, report) for group in chunk]
            for group, ids in zip(chunk, rows, strict=True):
                try:
                    result = self._encode_group(group, ids, report, ties, supervision) if ids else None
                except RowError as error:  # its steps are not in its text
                    report.drop(str(group.metadata.get("source", "data")), f"{error.kind}: {error}")
                    continue
                if result is not None:
                    yield result

    def _encode_alone(self, group: PreferenceGroup, report: EncodeReport) -> list[list[int]] | None:
        try:
            return self.encode(group.exchanges())
        except RowError as error:
            source = str(group.metadata.get("source", "data"))
            report.groups[source] += 1
            report.drop(source, f"{error.kind}: {error}")
            return None

    def _encode_group(self, group: PreferenceGroup, ids: list[list[int]], report: EncodeReport, ties: str, supervision: Supervision) -> EncodedGroup | None:
        source = str(group.metadata.get("source", "data"))
        report.groups[source] += 1
        report.facts.update(f"rated {name}" for rating in group.ratings for name in rating)
        taught = supervised(group, supervision, ties)
        if not taught:
            report.drop(source, lack(group, supervision, ties))
            return None
        if problem := value_problem(taught, supervision):
            raise DataError(f"{group.metadata.get('location', source)}: {problem}")
        group, taught, ids = self._with_fitting_negatives(group, taught, ids, report)
        comparisons = taught.comparisons
        uncut = ids
        longest = max(map(len, ids))
        if self.max_length is not None and longest > self.max_length:
            if self.length_policy == "error":
                raise DataError(
                    f"{group.metadata.get('location', source)}: {longest} tokens, more than max_length {self.max_length}; raise max_length, or set "
                    "length_policy to drop or truncate_prompt"
                )
            if self.length_policy == "drop":
                report.drop(source, f"longer than {self.max_length} tokens")
                return None
            prompts = [
                self._shared_start(group, ids) if isinstance(r, TokenIds) else self.prompt_length(e, i)
                for r, e, i in zip(group.responses, group.exchanges(), ids, strict=True)
            ]
            alike = longest - self.max_length if supervision.reads.startswith("divergence") else None
            fitted = [self.fit(i, start, alike) for i, start in zip(ids, prompts, strict=True)]
            if any(f is None for f in fitted):
                report.drop(source, f"with a response longer than {self.max_length} tokens")
                return None
            ids = [f for f in fitted if f is not None]
        if any(not c.is_tie and ids[c.chosen] == ids[c.rejected] for c in comparisons):
            report.drop(source, "with identical token ids on both sides")
            return None
        if supervision.reads.startswith("divergence"):
            for c in comparisons:
                try:
                    compared_span(ids[c.chosen], ids[c.rejected], padding=supervision.reads == "divergence_padded")
                except DataError as error:
                    raise DataError(f"{group.metadata.get('location', source)}: {error}") from error
        removed = [len(before) - len(after) for before, after in zip(uncut, ids, strict=True)]
        cut = sum(removed)
        starts: tuple[int, ...] = ()
        if supervision.reads == "response" or supervision.lengths or supervision.text:
            lengths = [
                self._shared_start(group, uncut) if isinstance(e.response, TokenIds) else self.prompt_length(e, whole)
                for e, whole in zip(group.exchanges(), uncut, strict=True)
            ]
            starts = tuple(min(length - gone, len(i) - 1) for length, gone, i in zip(lengths, removed, ids, strict=True))
        step_ends = tuple(at - removed[0] for at in self.step_ends(group.exchanges()[0], [step.text for step in group.steps])) if supervision.classes else ()
        report.kept[source] += 1
        report.cut[source] += cut > 0
        report.tokens += sum(map(len, ids))
        report.unique_tokens += sum(map(len, ids)) - shared_prefix(ids) * (len(ids) - 1)
        report.longest = max(report.longest, *map(len, ids))
        report.facts.update(facts_of(taught))
        return EncodedGroup(ids, taught, cut, starts, step_ends)

    def _with_fitting_negatives(
        self, group: PreferenceGroup, taught: PreferenceGroup, ids: list[list[int]], report: EncodeReport
    ) -> tuple[PreferenceGroup, PreferenceGroup, list[list[int]]]:
        """The group with those of its off-topic responses that fit and differ from its own; the others are counted, the group itself is not lost."""
        if not group.off_topic:
            return group, taught, ids
        own = len(group.responses) - group.off_topic
        longest = self.max_length or max(map(len, ids))
        kept = [i for i in range(own, len(ids)) if len(ids[i]) <= longest and ids[i] not in ids[:own]]
        report.facts["off-topic negatives"] += len(kept)
        report.facts["off-topic negatives left out (too long, or a response of the group)"] += group.off_topic - len(kept)
        places = [*range(own), *kept]
        group, taught = (
            replace(
                one,
                responses=tuple(one.responses[i] for i in places),
                ratings=tuple(one.ratings[i] for i in places) if one.ratings else (),
                ranks=tuple(one.ranks[i] for i in places) if one.ranks else (),
            )
            for one in (group, taught)
        )
        comparisons = against_off_topic(taught.comparisons, range(own, len(places)))
        return group, replace(taught, comparisons=comparisons), [ids[i] for i in places]

    # --- steps ---

    def step_ends(self, exchange: Exchange, steps: Sequence[str]) -> list[int]:
        """Index of the token that ends each step of a response, in the ids that `encode` gives: the last one before the next step begins.

        What stands between two steps (a line break) belongs to the first, so that a step is judged when it is known to be over; the last step ends
        with its own last token. Raises RowError where a step cannot be found in the text that the model reads.
        """
        if isinstance(exchange.response, TokenIds):
            raise RowError("not text", "steps cannot be found in a response of token ids; give it as text")
        if not steps:
            return []
        text = self._body(exchange)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        shift = len(self._with_prefix(encoded["input_ids"])) - len(encoded["input_ids"])
        end = str(self.tokenizer.eos_token or "")  # its letters are not the response's
        at = text.removesuffix(end).rfind(response_text(exchange).strip())
        if at < 0:
            raise RowError("rewritten", "the chat template does not keep the response as it stands, so its steps cannot be found in what the model reads")
        spans = []
        for number, step in enumerate(steps, 1):
            found = text.find(step.strip(), at) if step.strip() else -1
            if found < 0:
                raise RowError(
                    "empty step" if not step.strip() else "not text", f"step {number} of {len(steps)}, {step!r:.60}, is not in the text of the response"
                )
            at = found + len(step.strip())
            spans.append((found, at))
        tokens = _token_spans(spans, encoded["offset_mapping"])
        following = [first - 1 for first, _ in tokens[1:]]
        return [shift + max(last, before) for (_, last), before in zip(tokens, [*following, -1], strict=True)]

    def _shared_start(self, group: PreferenceGroup, ids: list[list[int]]) -> int:
        return common_prefix(ids) if len(ids) > 1 else len(self.rules.prefix)

    def template_hash(self) -> str | None:
        template = self.tokenizer.chat_template
        return hashlib.sha256(str(template).encode()).hexdigest() if template else None


def _token_spans(spans: Sequence[tuple[int, int]], offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """(first token, last token) of each span of characters. Several tokens may be pieces of one character, and then share its offsets."""
    begins = [begin for begin, _ in offsets]
    found = []
    for begin, end in spans:
        first = bisect_right(begins, begin) - 1
        while first > 0 and offsets[first - 1] == offsets[first] and offsets[first][0] < offsets[first][1]:
            first -= 1
        found.append((first, bisect_right(begins, end - 1) - 1))
    return found


def response_text(exchange: Exchange) -> str:
    """The text of a response: of its last message where it is a chat."""
    response = exchange.response
    return response if isinstance(response, str) else content_text(response[-1])  # type: ignore[arg-type]


def _as_messages(conversation: Conversation, role: str) -> list[Mapping[str, Any]]:
    if isinstance(conversation, str):
        return [{"role": role, "content": conversation}] if conversation else []
    return list(conversation)  # type: ignore[arg-type]


def as_exchange(item: Exchange | Conversation | Sequence[Any]) -> Exchange:
    """What people pass to `score`: an Exchange, a (prompt, response) pair, whole text, or a list of messages that ends with the response."""
    if isinstance(item, Exchange):
        return item
    if isinstance(item, (str, TokenIds)):
        return Exchange("", item)
    parts: Any = item
    if isinstance(parts, tuple) and len(parts) == 2 and not all(isinstance(part, Mapping) for part in parts):
        prompt, response = (part if isinstance(part, (str, TokenIds)) else tuple(part) for part in parts)
        return Exchange(prompt, response)
    if isinstance(parts, Sequence) and parts and all(isinstance(message, Mapping) for message in parts):
        return Exchange(tuple(parts[:-1]), tuple(parts[-1:]))
    raise DataError(f"cannot score {type(item).__name__} {item!r:.80}; expected text, messages that end with the response, or a (prompt, response) pair")


def common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest prefix that all share. Every pair of a batch asks, so no loop over tokens is Python's own."""
    first, *others = sequences
    return min((next(compress(count(), map(ne, first, other)), min(len(first), len(other))) for other in others), default=len(first))


def shared_prefix(sequences: Sequence[list[int]]) -> int:
    """`common_prefix` of many: that of the first and the last in lexicographic order."""
    return common_prefix([min(sequences), max(sequences)])
