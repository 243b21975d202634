"""Preferences as rows that teach a language model to judge: yes or no, the letter of the better response, reasons or a critique before the label.

Rows have `prompt` and `completion` as messages, so TRL's SFTTrainer takes them as they stand and puts loss on the completion alone. The same functions
make the prompts when such a model scores (`palate.scoring.generative`). Sources: GenRM (Zhang et al. 2024, arXiv 2408.15240) for yes/no and reasons
before it; RLHFlow's pair-preference model (Dong et al. 2024, arXiv 2405.07863) for the letter; CLoud (Ankner et al. 2024, arXiv 2408.11791) for critiques.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from palate.data.pairing import compared_with_off_topic
from palate.errors import ConfigError, DataError
from palate.types import Comparison, Conversation, Message, PreferenceGroup, TokenIds, content_text

Form: TypeAlias = Literal["yes_no", "pair_label", "pair_reasoning", "critique"]
Orders: TypeAlias = Literal["balanced", "both"]
Ties: TypeAlias = Literal["drop", "label"]

YES, NO, UNSURE = "Yes", "No", "Unsure"
A, B, TIE = "A", "B", "C"  # MT-Bench's letters (arXiv 2306.05685)

GOOD = "Is this a good response to the conversation?"
BETTER = "Which response to the conversation is better?"

VERDICT = "\n\nVerdict: "
"""Stands between reasons and label, in training rows and when a label is read after reasons."""

RATIONALE, CRITIQUES = "rationale", "critiques"
"""Keys of a group's metadata. `rationale`: reasons for a comparison (a list: one a comparison), with {chosen} and {rejected} where the responses are
named; `critiques`: one text a response."""

REFERENCE = "reference"
"""Key of a group's metadata: a right answer, which a judge of pairs may be shown."""

REFERENCE_NOTE = "The reference answer is right; a response need not be worded as it is. "


# --- prompts --------------------------------------------------------------------------------------------------------------------------------------

_TAG = re.compile(r"<(?=/?(?:conversation|reference|response(?:_[ab])?|user|assistant|system|tool|think|s|bos|eos|start_of_turn|end_of_turn)>|[|｜])")


def shown(text: str) -> str:
    """Text that cannot pass for a mark around it, nor for a control token of a chat template: `</response>` becomes `< /response>`."""
    return _TAG.sub("< ", text)


def transcript(conversation: Conversation) -> str:
    """A conversation in marks of its roles; plain text is a user's."""
    return "\n".join(f"<{role}>\n{shown(text)}\n</{role}>" for role, text in _turns(conversation, "user")) or "(empty)"


def response_block(name: str, response: Conversation) -> str:
    """A response in marks; of several messages (tool calls and their results) each has its role's."""
    turns = _turns(response, "assistant")
    text = shown(turns[0][1]) if len(turns) == 1 else transcript(response)
    return f"<{name}>\n{text}\n</{name}>"


def _turns(conversation: Conversation, role: str) -> list[tuple[str, str]]:
    if isinstance(conversation, TokenIds):
        raise DataError("token ids cannot be shown to a judge; give text or messages")
    if isinstance(conversation, str):
        return [(role, conversation)] if conversation else []
    return [(re.sub(r"\W+", "_", str(message.get("role", role))), content_text(message)) for message in conversation]


def point_messages(
    prompt: Conversation, response: Conversation, *, question: str = GOOD, labels: Sequence[str] = (YES, NO), reasons: bool = False
) -> tuple[Message, ...]:
    """One response and a question that a label answers; `reasons`: a critique is to come first."""
    material = f"<conversation>\n{transcript(prompt)}\n</conversation>\n\n{response_block('response', response)}"
    first = "Write a short critique of the response first." if reasons else ""
    return _asked(material, question, first, labels, reasons)


def pair_messages(
    prompt: Conversation,
    a: Conversation,
    b: Conversation,
    *,
    question: str = BETTER,
    labels: Sequence[str] = (A, B),
    reasons: bool = False,
    reference: Conversation | None = None,
) -> tuple[Message, ...]:
    """Two responses, in the order in which they are to be seen, and the question which is better; a third label means neither.

    `reference`: a right answer to judge by.
    """
    known = "" if reference is None else f"{response_block('reference', reference)}\n\n"
    blocks = f"{response_block('response_a', a)}\n\n{response_block('response_b', b)}"
    material = f"<conversation>\n{transcript(prompt)}\n</conversation>\n\n{known}{blocks}"
    note = "" if reference is None else REFERENCE_NOTE
    return _asked(material, f"{note}{question}", "Compare the two responses in a few sentences first." if reasons else "", labels, reasons)


def _asked(material: str, question: str, first: str, labels: Sequence[str], reasons: bool) -> tuple[Message, ...]:
    offered = f"{', '.join(labels[:-1])} or {labels[-1]}"
    form = f"{first} End with a line that says {VERDICT.strip()} and then {offered}." if reasons else f"Answer with {offered} alone."
    return ({"role": "user", "content": f"{material}\n\n{question} {form}"},)


# --- rows -----------------------------------------------------------------------------------------------------------------------------------------


@dataclass
class RowCounts:
    """What went in and what came out; nothing is left out uncounted."""

    groups: int = 0
    rows: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)  # comparisons (pairs) or responses (yes_no, critique), by reason

    def as_dict(self) -> dict[str, Any]:
        return {"groups": self.groups, "rows": self.rows, "labels": dict(self.labels), "left_out": dict(self.left_out)}


class GenerativeRows(NamedTuple):
    rows: list[dict[str, Any]]  # prompt, completion, label, probability, weight, and of pairs `chosen_first`
    counts: RowCounts


def generative_rows(
    groups: Sequence[PreferenceGroup],
    form: Form,
    *,
    orders: Orders = "balanced",
    ties: Ties = "drop",
    references: bool = False,
    off_topic: int = 0,
    seed: int = 0,
) -> GenerativeRows:
    """Training rows of one form.

    Pairs: a row a comparison, the better response first in half of the rows (drawn with `seed`), or with `orders` "both" two rows of half the weight.
    `probability` is P(A is better), or P(Yes). Responses one at a time: a row for each that is compared, its probability the weighted mean over its
    comparisons. A probability of one half is a tie: dropped and counted, or a label of its own, C or Unsure, which all prompts then offer.
    `references`: pairs are shown with the `reference` of their group's metadata, where it has one. `off_topic`: so many good responses to other prompts
    are worse than the best response to each prompt (RRM, Liu et al. 2024, arXiv 2409.13156), for forms without reasons.
    """
    for name, value, known in (("form", form, Form), ("orders", orders, Orders), ("ties", ties, Ties)):
        if value not in get_args(known):
            raise ConfigError(f"{name} {value!r}, expected one of {', '.join(get_args(known))}")
    if references and form in ("yes_no", "critique"):
        raise ConfigError(f"references are shown with pairs, not with the form {form}; leave them out")
    if off_topic and form in ("pair_reasoning", "critique"):
        raise ConfigError(f"nobody has given reasons against off-topic responses, which the form {form} needs; use yes_no or pair_label, or leave them out")
    counts = RowCounts(groups=len(groups))
    groups = compared_with_off_topic(groups, off_topic, seed) if off_topic else groups
    if form in ("yes_no", "critique"):
        rows = [row for group in groups for row in _point_rows(group, form == "critique", ties, counts)]
    else:
        rows = _pair_rows(groups, form == "pair_reasoning", orders, ties, references, random.Random(seed), counts)
    counts.rows = len(rows)
    counts.labels.update(row["label"] for row in rows)
    return GenerativeRows(rows, counts)


def _row(messages: Sequence[Message], reasons: str | None, label: str, probability: float, weight: float) -> dict[str, Any]:
    said = label if reasons is None else f"{reasons.strip()}{VERDICT}{label}"
    completion = [{"role": "assistant", "content": said}]
    return {"prompt": [dict(m) for m in messages], "completion": completion, "label": label, "probability": probability, "weight": weight}


# --- one response at a time -----------------------------------------------------------------------------------------------------------------------


def _point_rows(group: PreferenceGroup, critique: bool, ties: Ties, counts: RowCounts) -> Iterator[dict[str, Any]]:
    offered = (YES, NO, UNSURE) if ties == "label" else (YES, NO)
    critiques = group.metadata.get(CRITIQUES, ()) if critique else ()
    for i, response in enumerate(group.responses):
        won = _share_won(group.comparisons, i)
        reasons = critiques[i] if i < len(critiques) else None
        if won is None:
            counts.left_out["not compared"] += 1
        elif critique and not str(reasons or "").strip():
            counts.left_out["no critique"] += 1
        elif won[0] == EVEN and ties == "drop":
            counts.left_out["tie"] += 1
        else:
            probability, weight = won
            label = UNSURE if probability == EVEN else YES if probability > EVEN else NO
            messages = point_messages(group.prompt, response, labels=offered, reasons=critique)
            yield _row(messages, str(reasons) if critique else None, label, probability, weight)


def _share_won(comparisons: Sequence[Comparison], i: int) -> tuple[float, float] | None:
    """(weighted mean probability that response i is the better one, mean weight) over its comparisons; None where it has none that weighs."""
    own = [(c.probability if c.chosen == i else 1 - c.probability, c.weight) for c in comparisons if i in (c.chosen, c.rejected) and c.weight > 0]
    total = sum(weight for _, weight in own)
    return (round(sum(p * weight for p, weight in own) / total, DIGITS), total / len(own)) if own else None


EVEN = 0.5
DIGITS = 12  # of a mean probability: sums of weights round at the 16th, and 0.5 must be found


# --- pairs ----------------------------------------------------------------------------------------------------------------------------------------


class _Pair(NamedTuple):
    group: PreferenceGroup
    comparison: Comparison
    rationale: str | None
    reference: Conversation | None


def _pair_rows(
    groups: Sequence[PreferenceGroup], reasoning: bool, orders: Orders, ties: Ties, references: bool, draw: random.Random, counts: RowCounts
) -> list[dict[str, Any]]:
    pairs = [pair for group in groups for pair in _pairs(group, reasoning, ties, references, counts)]
    if orders == "both":
        return [_pair_row(pair, first, 0.5, ties) for pair in pairs for first in (True, False)]
    # Of the decided pairs, and of the ties, each half has the better response first: a coin for each would leave a bias of 1/sqrt(rows).
    first = _halves([pair.comparison.is_tie for pair in pairs], draw)
    return [_pair_row(pair, chosen_first, 1.0, ties) for pair, chosen_first in zip(pairs, first, strict=True)]


def _halves(kinds: Sequence[bool], draw: random.Random) -> list[bool]:
    """One side a row; within each kind both sides are equally many, or differ by one."""
    sides = [False] * len(kinds)
    for kind in (False, True):
        places = [i for i, own in enumerate(kinds) if own == kind]
        draw.shuffle(places)
        odd = draw.random() < 0.5
        for n, place in enumerate(places):
            sides[place] = (n % 2 == 0) == odd
    return sides


def _pairs(group: PreferenceGroup, reasoning: bool, ties: Ties, references: bool, counts: RowCounts) -> Iterator[_Pair]:
    reference = group.metadata.get(REFERENCE) if references else None
    for n, comparison in enumerate(group.comparisons):
        rationale = _rationale(group, n) if reasoning else None
        if problem := _pair_problem(comparison, rationale, reasoning, ties):
            counts.left_out[problem] += 1
        else:
            yield _Pair(group, comparison, rationale, reference)


def _pair_problem(comparison: Comparison, rationale: str | None, reasoning: bool, ties: Ties) -> str | None:
    if comparison.weight <= 0:
        return "no weight"
    if comparison.is_tie and ties == "drop":
        return "tie"
    if reasoning and rationale is None:
        return "no rationale"
    return "rationale names a side" if reasoning and _NAMES_SIDE.search(rationale or "") else None


_NAMES_SIDE = re.compile(r"\b(?:[Rr]esponse|[Aa]ssistant|[Aa]nswer|[Oo]ption|[Mm]odel)s?\s+[AB12]\b")
"""Reasons that call a response by the side on which their judge saw it would be wrong on the other side."""


def _rationale(group: PreferenceGroup, n: int) -> str | None:
    """The reasons for comparison `n`; a single text belongs to a single comparison."""
    found = group.metadata.get(RATIONALE)
    if isinstance(found, Sequence) and not isinstance(found, str):
        found = found[n] if n < len(found) else None
    elif len(group.comparisons) > 1:
        return None
    return str(found) if found and str(found).strip() else None


def _pair_row(pair: _Pair, chosen_first: bool, share: float, ties: Ties) -> dict[str, Any]:
    group, c, rationale, reference = pair
    chosen, rejected = group.responses[c.chosen], group.responses[c.rejected]
    sides = {"chosen": "Response A", "rejected": "Response B"} if chosen_first else {"chosen": "Response B", "rejected": "Response A"}
    a, b = (chosen, rejected) if chosen_first else (rejected, chosen)
    probability = c.probability if chosen_first else 1 - c.probability
    label = TIE if c.is_tie else A if probability > 0.5 else B
    labels = (A, B, TIE) if ties == "label" else (A, B)
    messages = pair_messages(group.prompt, a, b, labels=labels, reasons=rationale is not None, reference=reference)
    reasons = None if rationale is None else _filled(rationale, sides)
    return _row(messages, reasons, label, probability, c.weight * share) | {"chosen_first": chosen_first}


def _filled(text: str, sides: Mapping[str, str]) -> str:
    return re.sub(r"\{(chosen|rejected)\}", lambda match: sides[match[1]], text)
