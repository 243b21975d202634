"""Known row layouts to PreferenceGroup: one function a layout, one table (`LAYOUTS`), recognised by column names.

A layout is recognised from the columns of a row; the first entry of the table whose columns are present wins, so richer layouts stand above
plainer ones. Parsers raise `RowError` with a kind; the loader adds file and line. Column spellings are those of TRL, OpenRLHF, open-instruct,
DeepSpeed-Chat, LLaMA-Factory, ms-swift, NeMo-RL, RLHFlow, torchtune and of the public data sets themselves.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from palate.data.pairing import from_probability, from_scores, from_votes, overall
from palate.errors import DataError, RowError
from palate.types import STEP_SEPARATOR, Comparison, Conversation, Message, PreferenceGroup, Step, TokenIds, text_of

Row = Mapping[str, Any]

RESPONSE_PAIRS = (
    ("response_1", "response_2"),
    ("response1", "response2"),
    ("response_a", "response_b"),
    ("response_A", "response_B"),
    ("response_0", "response_1"),
    ("output_1", "output_2"),
    ("answer_1", "answer_2"),
    ("answer_a", "answer_b"),
    ("completion_a", "completion_b"),
)
PAIR_LABELS = ("label", "preference", "winner", "better_response_id")
SIGNED_LABELS = ("overall_preference", "preference_strength")
"""HelpSteer2 and 3: strength from -3 (response 1 much better) to 3 (response 2 much better); 0 is a tie."""

RESPONSE_LISTS = ("responses", "completions", "answers", "candidates")
SCORE_LISTS = ("scores", "ratings", "rewards")
SINGLE_RESPONSES = ("response", "completion", "output", "answer")
SINGLE_LABELS = ("label", "is_correct", "correct", "desirable")
SINGLE_SCORES = ("score", "rating", "reward")
ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")  # HelpSteer
PROMPTS = ("prompt", "question", "query", "instruction", "input", "context", "trajectory")
MEDIA = ("images", "videos", "audios", "image", "video", "audio")
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
TEMPLATE_COLUMNS = ("tools", "documents", "chat_template_kwargs")
HH_TURN = "\n\nAssistant:"


class Layout(NamedTuple):
    name: str
    recognised: Callable[[frozenset[str]], bool]
    parse: Callable[[Row], PreferenceGroup]
    columns: str  # how the layout reads, for messages and documentation
    compares: bool = True  # False: rows without a preference (single responses), good for scoring only


# --- small readers ---------------------------------------------------------------------------------------------------------------------


def _first(names: Iterable[str], columns: Iterable[str]) -> str | None:
    columns = set(columns)
    return next((name for name in names if name in columns), None)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise RowError("not text", f"column `{column}` holds {type(value).__name__} {value!r:.60}, expected text")
    return value


def _messages(value: Any, column: str) -> tuple[Message, ...]:
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise RowError("not text", f"column `{column}` holds {type(value).__name__} {value!r:.60}, expected a list of messages with `role` and `content`")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise RowError("not text", f"column `{column}`, message {i + 1} is {type(message).__name__} {message!r:.60}, expected `role` and `content`")
        if "from" in message and "value" in message:
            role = SHAREGPT_ROLES.get(message["from"])
            if role is None:
                raise RowError("not text", f"column `{column}`, message {i + 1} is from {message['from']!r}, expected one of {', '.join(SHAREGPT_ROLES)}")
            message = {"role": role, "content": message["value"]}
        # Arrow fills the keys that other messages have with None: a key without a value is no key.
        message = {key: item for key, item in message.items() if item is not None}
        if "role" not in message or not ("content" in message or "tool_calls" in message):
            raise RowError("not text", f"column `{column}`, message {i + 1} has keys {sorted(message)}, expected `role` and `content`")
        content = message.get("content", "")
        if isinstance(content, list):  # OpenAI's parts: text only, joined, since templates differ in what they make of a list
            if any(not isinstance(part, Mapping) or not isinstance(part.get("text"), str) for part in content):
                raise RowError("media", f"column `{column}`, message {i + 1} holds parts that are not text; this model reads text only")
            message = {**message, "content": "".join(part["text"] for part in content)}
        elif not isinstance(content, str):
            raise RowError("not text", f"column `{column}`, message {i + 1}: content is {type(content).__name__}, expected text")
        messages.append(message)
    return tuple(messages)


def _conversation(value: Any, column: str) -> Conversation:
    return _text(value, column) if isinstance(value, str) or not isinstance(value, (list, tuple, Mapping)) else _messages(value, column)


def _ids(value: Any, column: str, mask: Any = None) -> TokenIds:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise RowError("not text", f"column `{column}` holds {type(value).__name__}, expected a list of token ids")
    ids = [int(i) for i in value]
    if mask is not None:
        if len(mask) != len(ids):
            raise RowError("ragged", f"column `{column}` has {len(ids)} ids but its attention mask has {len(mask)} entries")
        ids = [i for i, m in zip(ids, mask, strict=True) if m]
    return TokenIds(ids)


def _number(value: Any, column: str, kind: str = "not a number") -> float:
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, str) or not isinstance(value, (int, float)) or math.isnan(value) or math.isinf(value):
        raise RowError(kind, f"column `{column}` holds {value!r:.60}, expected a finite number")
    return float(value)


def _margin(row: Row) -> float:
    """Margin of the row in reward units; absent or null means 0 (none given), so that rows never borrow each other's."""
    value = row.get("margin")
    if value is None:
        return 0.0
    margin = _number(value, "margin", kind="margin")
    if margin < 0:
        raise RowError(
            "margin", f"column `margin` is {margin}: `chosen` is the better side, so a margin is 0 or more; swap the sides, clip it, or set loss.margins: false"
        )
    return margin


WEIGHTS = ("weight", "pair_weight")
"""`pair_weight` is what `palate build` writes, 1 / rows of the prompt; a row's own `weight` stands above it."""


def _weight(row: Row) -> float:
    column = next((name for name in WEIGHTS if row.get(name) not in (None, "")), None)  # a CSV's empty cell is no weight
    if column is None:
        return 1.0
    weight = _number(row[column], column, kind="weight")
    if weight < 0:
        raise RowError("weight", f"column `{column}` is {weight}, expected 0 or more")
    return weight


STRENGTHS = {"significantly better": 3.0, "better": 2.0, "slightly better": 1.0, "negligibly better": 0.0, "unsure": 0.0, "negligibly better/unsure": 0.0}
"""Llama 2's four answers (arXiv 2307.09288, section 3.2.1) as numbers."""


def _strength(row: Row) -> float:
    """How much better the chosen side is on the annotators' scale, 0 to 3; absent means not said."""
    value = row.get("strength")
    if value is None:
        return 0.0
    if isinstance(value, str) and value.strip().lower() in STRENGTHS:
        return STRENGTHS[value.strip().lower()]
    strength = _number(value, "strength", kind="strength")
    if not 0 <= strength <= 3:
        raise RowError("strength", f"column `strength` is {strength}, expected 0 to 3, or one of {', '.join(STRENGTHS)}")
    return strength


def _compared(row: Row, chosen: int = 0, rejected: int = 1) -> Comparison:
    """The comparison of a row that says who is better, with its margin, weight and strength."""
    return Comparison(chosen, rejected, _margin(row), _weight(row), strength=_strength(row))


def _as_response(value: Any, column: str, prompt: Conversation) -> Conversation:
    """A response in the kind of its prompt: text after a chat prompt becomes an assistant message."""
    response = _conversation(value, column)
    if isinstance(response, str) and not isinstance(prompt, str):
        return ({"role": "assistant", "content": response},)
    if isinstance(prompt, str) and not isinstance(response, str):
        raise RowError("not text", f"`prompt` is text but `{column}` holds messages; give both as messages or both as text")
    return response


def _prompt(row: Row) -> tuple[str, Conversation]:
    """The prompt's column and its content. A `system` column makes a chat of a text prompt; `input` continues an `instruction`."""
    column = next((name for name in PROMPTS if row.get(name) is not None), None)
    if column is None:
        raise RowError("missing column", f"no prompt column among {sorted(row)}; expected one of {', '.join(PROMPTS)}")
    prompt = _conversation(row[column], column)
    if column == "instruction" and row.get("input"):
        prompt = f"{prompt}\n{_text(row['input'], 'input')}"
    system = row.get("system")
    if isinstance(system, str) and system.strip():
        turns = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(m for m in prompt if isinstance(m, Mapping))
        if not turns or turns[0].get("role") != "system":
            prompt = ({"role": "system", "content": system}, *turns)
    return column, prompt


def _template_args(row: Row) -> dict[str, Any]:
    args: dict[str, Any] = {}
    for column in TEMPLATE_COLUMNS:
        value = row.get(column)
        if isinstance(value, str) and value.strip():
            try:
                value = json.loads(value)
            except json.JSONDecodeError as error:
                raise RowError("not text", f"column `{column}` is neither a list nor JSON: {error}") from error
        if value:
            args.update(value if column == "chat_template_kwargs" else {column: value})
    return args


def _metadata(row: Row, used: Iterable[str]) -> dict[str, Any]:
    used = set(used)
    return {key: value for key, value in row.items() if key not in used}


def _group(
    row: Row,
    used: Iterable[str],
    prompt: Conversation,
    responses: Iterable[Conversation],
    comparisons: Iterable[Comparison] = (),
    ratings: Iterable[Mapping[str, float]] = (),
    ranks: Iterable[float] = (),
    steps: Iterable[Step] = (),
) -> PreferenceGroup:
    used = (*used, *TEMPLATE_COLUMNS, *MEDIA, "margin", *WEIGHTS, "strength", "system")
    return PreferenceGroup(
        prompt,
        tuple(responses),
        tuple(comparisons),
        tuple(ratings),
        tuple(ranks),
        tuple(steps),
        metadata=_metadata(row, used),
        template_args=_template_args(row),
    )


# --- chosen and rejected -------------------------------------------------------------------------------------------------------------------


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The shared prompt of two whole dialogues. Raw HH text splits after the last shared "Assistant:", other text at the last shared blank.

    The parts always concatenate to exactly what was given: the response starts with the blank that follows the split.
    """
    n = 0
    for a, b in zip(chosen, rejected):  # noqa: B905 (the shorter one ends the common prefix)
        if a != b:
            break
        n += 1
    turn = chosen.rfind(HH_TURN, 0, n)
    if turn >= 0:
        cut = turn + len(HH_TURN)
    else:
        cut = max(chosen.rfind(blank, 0, n) for blank in (" ", "\n"))
    rest = chosen[cut:], rejected[cut:]
    if cut <= 0 or any(r and not r[0].isspace() for r in rest):
        return "", chosen, rejected
    return chosen[:cut], *rest


def _split_messages(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """Number of messages that both share, leaving at least the last one of each as the response."""
    n = 0
    while n < min(len(chosen), len(rejected)) - 1 and chosen[n] == rejected[n]:
        n += 1
    return n


def parse_chosen_rejected(row: Row) -> PreferenceGroup:
    comparison = _compared(row)
    chosen, rejected = _conversation(row["chosen"], "chosen"), _conversation(row["rejected"], "rejected")
    if type(chosen) is not type(rejected):
        raise RowError("not text", "one of `chosen` and `rejected` is text and the other messages; give both alike")
    used = (*PROMPTS, "chosen", "rejected")
    if any(row.get(name) is not None for name in PROMPTS):
        _, prompt = _prompt(row)
        if not isinstance(chosen, str) and not isinstance(rejected, str):
            return _group(row, used, *_message_sides(prompt, _messages(row["chosen"], "chosen"), _messages(row["rejected"], "rejected")), [comparison])
        responses = [_as_response(row[side], side, prompt) for side in ("chosen", "rejected")]
        return _group(row, used, prompt, responses, [comparison])
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, *texts = _split_text(chosen, rejected)
        return _group(row, used, prompt, texts, [comparison])
    first, second = _messages(row["chosen"], "chosen"), _messages(row["rejected"], "rejected")
    n = _split_messages(first, second)
    return _group(row, used, first[:n], (first[n:], second[n:]), [comparison])


def _message_sides(prompt: Conversation, chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> tuple[Conversation, tuple[Conversation, Conversation]]:
    """(prompt, both responses) where the sides are messages: answers only, or whole dialogues that repeat the prompt (UltraFeedback, Tulu 3)."""
    if all(message.get("role") in ("assistant", "tool") for message in (*chosen, *rejected)):
        asked = ({"role": "user", "content": prompt},) if isinstance(prompt, str) else prompt
        return asked, (chosen, rejected)
    n = _split_messages(chosen, rejected)
    return chosen[:n], (chosen[n:], rejected[n:])


PRETOKENIZED = (
    ("chosen_ids", "rejected_ids", None, None),  # TRL
    ("chosen_input_ids", "rejected_input_ids", "chosen_attention_mask", "rejected_attention_mask"),  # open-instruct, torchtune, LLaMA-Factory
    ("input_ids_chosen", "input_ids_rejected", "attention_mask_chosen", "attention_mask_rejected"),  # TRL until 2025
    ("input_ids_j", "input_ids_k", "attention_mask_j", "attention_mask_k"),  # RLHFlow, stackllama
)


def parse_pretokenized(row: Row) -> PreferenceGroup:
    chosen, rejected, chosen_mask, rejected_mask = next(names for names in PRETOKENIZED if {names[0], names[1]} <= row.keys())
    responses = (_ids(row[chosen], chosen, row.get(chosen_mask or "")), _ids(row[rejected], rejected, row.get(rejected_mask or "")))
    used = (chosen, rejected, chosen_mask or "", rejected_mask or "", "chosen_labels", "rejected_labels")
    return _group(row, used, "", responses, [_compared(row)])


def parse_messages_rejected(row: Row) -> PreferenceGroup:
    """ms-swift: `messages` ends with the chosen answer; `rejected_response` is text, `rejected_messages` a whole or a last turn."""
    messages = _messages(row["messages"], "messages")
    if messages[-1]["role"] != "assistant":
        raise RowError("not text", f"`messages` ends with a {messages[-1]['role']} turn; expected the chosen assistant answer last")
    prompt, chosen = messages[:-1], messages[-1:]
    if row.get("rejected_response") is not None:
        rejected = _as_response(row["rejected_response"], "rejected_response", prompt)
    else:
        other = _messages(row["rejected_messages"], "rejected_messages")
        n = _split_messages(messages, other)
        if n == len(prompt) or len(other) > len(chosen):
            prompt, chosen, rejected = messages[:n], messages[n:], other[n:]
        else:
            rejected = other
    return _group(row, ("messages", "rejected_response", "rejected_messages"), prompt, (chosen, rejected), [_compared(row)])


def parse_sharegpt(row: Row) -> PreferenceGroup:
    prompt = _messages(row["conversations"], "conversations")
    if isinstance(row.get("system"), str) and row["system"]:
        prompt = ({"role": "system", "content": row["system"]}, *prompt)
    responses = [_messages(row[c], c) if not isinstance(row[c], str) else _as_response(row[c], c, prompt) for c in ("chosen", "rejected")]
    return _group(row, ("conversations", "system", "chosen", "rejected"), prompt, responses, [_compared(row)])


def parse_alpaca(row: Row) -> PreferenceGroup:
    """`instruction`, `input`, `chosen`, `rejected`; with `system` or `history` it becomes a chat."""
    text = _text(row["instruction"], "instruction")
    if row.get("input"):
        text = f"{text}\n{_text(row['input'], 'input')}"
    history, system = row.get("history") or [], row.get("system")
    prompt: Conversation = text
    if history or system:
        turns = [{"role": "system", "content": system}] if system else []
        for user, assistant in history:
            turns += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        prompt = (*turns, {"role": "user", "content": text})
    responses = [_as_response(row[side], side, prompt) for side in ("chosen", "rejected")]
    used = ("instruction", "input", "history", "chosen", "rejected")
    return _group(row, used, prompt, responses, [_compared(row)])


# --- rankings, ratings, votes, soft labels ---------------------------------------------------------------------------------------------------


def parse_ranked_items(row: Row) -> PreferenceGroup:
    """NeMo-RL: `context`, `completions`: [{rank, completion}]; Nectar: `prompt`, `answers`: [{rank, answer}]. The lowest rank is best."""
    column, name = ("completions", "completion") if "completions" in row else ("answers", "answer")
    _, prompt = _prompt(row)
    responses, ranks = [], []
    for item in row[column]:
        if not isinstance(item, Mapping) or not {"rank", name} <= item.keys():
            raise RowError("ragged", f"every entry of `{column}` needs `rank` and `{name}`")
        responses.append(_as_response(item[name], column, prompt))
        ranks.append(-_number(item["rank"], f"{column}.rank"))
    return _group(row, (*PROMPTS, column), prompt, responses, from_scores(ranks), ranks=[-rank for rank in ranks])


def _listed(row: Row, column: str, k: int) -> list[Any]:
    values = row[column]
    if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != k:
        got = f"{len(values)} entries" if isinstance(values, Sequence) and not isinstance(values, str) else type(values).__name__
        raise RowError("ragged", f"`{column}` has {got} for {k} responses; expected one entry a response")
    return list(values)


def _rating(value: Any, column: str) -> dict[str, float]:
    """One response's absolute score: a number, repeated numbers (their mean), or numbers by attribute."""
    if isinstance(value, Mapping):
        rating = {str(name): _number(item, f"{column}.{name}", kind="ragged") for name, item in value.items() if item is not None}
        if not rating:
            raise RowError("ragged", f"`{column}` has an entry without a number")
        return rating
    if isinstance(value, (list, tuple)):
        numbers = [_number(item, column, kind="ragged") for item in value]
        if not numbers:
            raise RowError("ragged", f"`{column}` has an empty list of ratings")
        return {"score": sum(numbers) / len(numbers)}
    return {"score": _number(value, column, kind="ragged")}


def parse_ranking(row: Row) -> PreferenceGroup:
    """A prompt and K `responses` with `comparisons` [[i, j, winner]], `scores`/`ratings` (higher is better) or `ranks` (lower is better)."""
    _, prompt = _prompt(row)
    column = _first(RESPONSE_LISTS, row)
    assert column is not None
    if not isinstance(row[column], (list, tuple)):
        raise RowError("ragged", f"`{column}` holds {type(row[column]).__name__}, expected a list of responses")
    responses = [_as_response(value, column, prompt) for value in row[column]]
    k = len(responses)
    ratings: list[dict[str, float]] = []
    scores: list[float] | None = None
    ranks: list[float] = []
    for name in SCORE_LISTS:
        if row.get(name) is None:
            continue
        entries = [_rating(value, name) for value in _listed(row, name, k)]
        if any(set(entry) != set(entries[0]) for entry in entries):
            raise RowError("ragged", f"`{name}` names different attributes for different responses of one prompt: {[sorted(e) for e in entries]}")
        ratings = [dict(a) | b for a, b in zip(ratings or [{}] * k, entries, strict=True)]
        if scores is None:
            scores = [overall(entry) for entry in entries]
    if row.get("comparisons") is not None:
        comparisons = _explicit_comparisons(row["comparisons"], k)
    elif row.get("ranks") is not None:
        ranks = [math.nan if rank is None else _number(rank, "ranks", kind="ragged") for rank in _listed(row, "ranks", k)]
        ranked = [i for i, rank in enumerate(ranks) if not math.isnan(rank)]
        comparisons = tuple(c._replace(chosen=ranked[c.chosen], rejected=ranked[c.rejected]) for c in from_scores([-ranks[i] for i in ranked]))
    elif scores is not None:
        comparisons, ranks = from_scores(scores), [-score for score in scores]
    else:
        raise RowError("missing column", f"`{column}` comes without {', '.join((*SCORE_LISTS, 'ranks', 'comparisons'))}: nothing says which is better")
    used = (*PROMPTS, column, *SCORE_LISTS, "ranks", "comparisons")
    weight = _weight(row)
    return _group(row, used, prompt, responses, [c._replace(weight=weight) for c in comparisons], ratings, ranks)


def _explicit_comparisons(triples: Any, k: int) -> tuple[Comparison, ...]:
    comparisons = []
    for triple in triples:
        i, j, winner = (int(value) for value in triple)
        if not (0 <= i < k and 0 <= j < k and i != j and winner in (0, 1, 2)):
            raise RowError("ragged", f"`comparisons` holds {list(triple)}: expected [i, j, winner] with i, j below {k} and winner 0 (tie), 1 (i) or 2 (j)")
        comparisons.append(Comparison(i, j, probability=0.5) if winner == 0 else Comparison(i, j) if winner == 1 else Comparison(j, i))
    return tuple(comparisons)


FIRST_WINS = {"1", "a", "a>b", "a>>b", "model_a", "response_1", "response_a", "output_1", "first"}
SECOND_WINS = {"2", "b", "b>a", "b>>a", "model_b", "response_2", "response_b", "output_2", "second"}
TIE_LABELS = {"0", "tie", "a=b", "c", "both", "equal", "tie (bothbad)", "both_bad"}


def _pair_columns(columns: Iterable[str]) -> tuple[str, str] | None:
    columns = set(columns)
    return next((pair for pair in RESPONSE_PAIRS if set(pair) <= columns), None)


def parse_two_responses(row: Row) -> PreferenceGroup:
    """Two responses with a label (1, 2, 0 = tie; "A", "B", "A>B", "tie"), or with votes [1, 2, 0, ...] where no label decides."""
    pair = _pair_columns(row)
    assert pair is not None
    _, prompt = _prompt(row)
    responses = [_as_response(row[column], column, prompt) for column in pair]
    column = _first(PAIR_LABELS, row)
    used = (*PROMPTS, *pair, column or "", *(["chosen", "rejected"] if {"chosen", "rejected"} <= row.keys() else []))
    label = row[column] if column else None
    margin, weight = _margin(row), _weight(row)
    signed = next((name for name in SIGNED_LABELS if row.get(name) is not None), None)
    if signed is not None:
        strength = _number(row[signed], signed, kind="label")
        if abs(strength) > 3:
            raise RowError("label", f"column `{signed}` is {strength:g}, expected -3 (the first is much better) to 3 (the second is)")
        comparison = Comparison(*((0, 1) if strength < 0 else (1, 0)), margin, weight, strength=abs(strength))
        return _group(row, used, prompt, responses, [comparison._replace(probability=0.5, margin=0.0) if strength == 0 else comparison])
    if label is None:
        votes = row.get("votes")
        if not votes or not any(vote in (0, 1, 2) for vote in votes):
            return _group(row, used, prompt, responses)  # nobody decided: no comparison, counted by validation
        counts = [sum(1 for vote in votes if vote == option) for option in (1, 2, 0)]
        return _group(row, used, prompt, responses, [from_votes(*counts)._replace(margin=margin, weight=weight, strength=_strength(row))])
    key = str(int(label) if isinstance(label, float) and label.is_integer() else label).strip().lower()
    if pair == ("response_0", "response_1"):  # PKU-SafeRLHF numbers its responses from 0
        key = {"0": "1", "1": "2"}.get(key, key)
    if key in TIE_LABELS:
        comparison = Comparison(0, 1, weight=weight, probability=0.5)
    elif key in FIRST_WINS or key in SECOND_WINS:
        comparison = _compared(row, *((0, 1) if key in FIRST_WINS else (1, 0)))
    else:
        raise RowError("label", f"column `{column}` holds {label!r}, expected 1, 2 or 0 (tie), or A, B, A>B, B>A, tie")
    return _group(row, used, prompt, responses, [comparison])


def parse_arena(row: Row) -> PreferenceGroup:
    """Arena battles: two whole conversations and `winner`: model_a, model_b, tie, tie (bothbad)."""
    a, b = _messages(row["conversation_a"], "conversation_a"), _messages(row["conversation_b"], "conversation_b")
    n = _split_messages(a, b)
    key = str(row["winner"]).strip().lower()
    if key not in FIRST_WINS | SECOND_WINS | TIE_LABELS:
        raise RowError("label", f"column `winner` holds {row['winner']!r}, expected model_a, model_b, tie or tie (bothbad)")
    comparison = Comparison(0, 1, probability=0.5) if key in TIE_LABELS else Comparison(0, 1) if key in FIRST_WINS else Comparison(1, 0)
    return _group(row, ("conversation_a", "conversation_b", "winner"), a[:n], (a[n:], b[n:]), [comparison])


def parse_shp(row: Row) -> PreferenceGroup:
    """Stanford Human Preferences: `labels` 1 says that human_ref_A has the higher score, 0 that B has."""
    label = row["labels"]
    if label not in (0, 1):
        raise RowError("label", f"column `labels` holds {label!r}, expected 1 (A is better) or 0 (B is better)")
    prompt = _text(row["history"], "history")
    responses = [_text(row[column], column) for column in ("human_ref_A", "human_ref_B")]
    return _group(row, ("history", "human_ref_A", "human_ref_B", "labels"), prompt, responses, [Comparison(0, 1) if label == 1 else Comparison(1, 0)])


SOFT_LABELS = {"prob_b": 1, "p_hat": 0, "prob_a": 0, "prob_chosen": 0, "probability": 0}
"""Columns with a probability, and which response (0 = first) it speaks for; `p_hat` is P(chosen, or the first, is better)."""


def parse_soft_label(row: Row) -> PreferenceGroup:
    """`chosen` and `rejected` (or two responses) with a probability.

    `p_hat` beside a `margin` is one strength in two forms (`palate build` writes both), and a loss that took both would learn it twice: where margins are
    read the row is a plain pair with its margin, where they are not it is a soft label.
    """
    column = _first(SOFT_LABELS, row)
    assert column is not None
    probability = _number(row[column], column, kind="label")
    if not 0.0 <= probability <= 1.0:
        raise RowError("label", f"column `{column}` is {probability}, expected a probability between 0 and 1")
    second = probability if SOFT_LABELS[column] == 1 else 1.0 - probability
    pair = _pair_columns(row)
    if pair is None:
        base = parse_chosen_rejected({key: value for key, value in row.items() if key != column})
    else:
        _, prompt = _prompt(row)
        base = _group(row, (*PROMPTS, *pair, column), prompt, [_as_response(row[c], c, prompt) for c in pair])
    comparison = from_probability(second)._replace(weight=_weight(row), margin=_margin(row), strength=_strength(row))
    if column == "p_hat" and row.get("margin") is not None and not comparison.is_tie:
        if pair is None and probability < 0.5:
            raise RowError("label", f"`p_hat` is {probability}, so `rejected` is likelier to be better, beside a `margin` for `chosen`; swap the sides")
        comparison = comparison._replace(probability=1.0)
    return replace(base, comparisons=(comparison,))


# --- single responses -------------------------------------------------------------------------------------------------------------------


def parse_stepwise(row: Row) -> PreferenceGroup:
    """TRL's stepwise supervision: `completions` are the steps of one answer, `labels` say which steps are right."""
    _, prompt = _prompt(row)
    steps = [_text(step, "completions").rstrip() for step in row["completions"]]
    labels = _listed(row, "labels", len(steps))
    response = _as_response(STEP_SEPARATOR.join(steps), "completions", prompt)
    marked = [Step(step, None if label is None else _step_label(label)) for step, label in zip(steps, labels, strict=True)]
    return _group(row, (*PROMPTS, "completions", "labels"), prompt, [response], steps=marked)


def _step_label(value: Any) -> int:
    label = _number(value, "labels", kind="label")
    if label not in (-1, 0, 1):
        raise RowError("label", f"column `labels` holds {value!r}, expected true or false, or 1, 0, -1 (PRM800K: right, neutral, wrong)")
    return int(label)


def _single(row: Row) -> tuple[Conversation, Conversation, tuple[str, ...]]:
    column, prompt = _prompt(row)
    name = _first(SINGLE_RESPONSES, set(row) - {column})
    assert name is not None
    return prompt, _as_response(row[name], name, prompt), (column, name, *(["input"] if column == "instruction" else []))


def parse_labelled(row: Row) -> PreferenceGroup:
    """Unpaired feedback (KTO) and outcomes (ORM): one response and whether it is desirable or right."""
    prompt, response, used = _single(row)
    column = _first(SINGLE_LABELS, row)
    assert column is not None
    value = row[column]
    value = {"true": True, "false": False}.get(value.lower(), value) if isinstance(value, str) else value
    if value not in (True, False):
        raise RowError("label", f"column `{column}` holds {row[column]!r}, expected true or false")
    return _group(row, (*used, column), prompt, [response], (), [{"label": float(value)}])


def parse_rated(row: Row) -> PreferenceGroup:
    prompt, response, used = _single(row)
    column = _first(SINGLE_SCORES, row)
    assert column is not None
    rating = _rating(row[column], column)
    return _group(row, (*used, column), prompt, [response], (), [rating])


def parse_attributes(row: Row) -> PreferenceGroup:
    """HelpSteer: one response and its scores for several attributes."""
    prompt, response, used = _single(row)
    rating = {name: _number(row[name], name, kind="ragged") for name in ATTRIBUTES if row.get(name) is not None}
    return _group(row, (*used, *ATTRIBUTES), prompt, [response], (), [rating])


def parse_prompt_response(row: Row) -> PreferenceGroup:
    prompt, response, used = _single(row)
    return _group(row, used, prompt, [response])


def parse_messages(row: Row) -> PreferenceGroup:
    column = "messages" if "messages" in row else "conversations"
    messages = _messages(row[column], column)
    cut = len(messages)
    while cut > 0 and messages[cut - 1]["role"] != "user":
        cut -= 1
    if cut == len(messages):
        raise RowError("not text", f"`{column}` ends with a {messages[-1]['role']} turn; expected an assistant answer last")
    return _group(row, (column,), messages[:cut], [messages[cut:]])


# --- the table ---------------------------------------------------------------------------------------------------------------------


def _has(*names: str) -> Callable[[frozenset[str]], bool]:
    return lambda columns: set(names) <= columns


def _has_pair(columns: frozenset[str]) -> bool:
    return _pair_columns(columns) is not None and _first(PROMPTS, columns) is not None


def _has_single(columns: frozenset[str]) -> bool:
    prompt = _first(PROMPTS, columns)
    return prompt is not None and _first(SINGLE_RESPONSES, columns - {prompt}) is not None


def _is_ranking(columns: frozenset[str]) -> bool:
    listed = _first(RESPONSE_LISTS, columns) is not None and _first(PROMPTS, columns) is not None
    return listed and _first((*SCORE_LISTS, "ranks", "comparisons"), columns) is not None


LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "pretokenized pairs",
        lambda c: any({names[0], names[1]} <= c for names in PRETOKENIZED),
        parse_pretokenized,
        "chosen_ids, rejected_ids [, margin] (also chosen_input_ids, input_ids_chosen, input_ids_j/k, with attention masks)",
    ),
    Layout(
        "ranked items",
        lambda c: {"context", "completions"} <= c or ({"prompt", "answers"} <= c and not {*SCORE_LISTS, "ranks", "comparisons"} & c),
        parse_ranked_items,
        "context, completions [{rank, completion}] (or prompt, answers [{rank, answer}])",
    ),
    Layout("Arena battle", _has("conversation_a", "conversation_b", "winner"), parse_arena, "conversation_a, conversation_b, winner"),
    Layout("SHP", _has("history", "human_ref_A", "human_ref_B", "labels"), parse_shp, "history, human_ref_A, human_ref_B, labels"),
    Layout("steps", _has("completions", "labels"), parse_stepwise, "prompt, completions [step], labels [step]", compares=False),
    Layout("ranking", _is_ranking, parse_ranking, "prompt, responses, and scores | ratings | ranks | comparisons [[i, j, winner]]"),
    Layout(
        "soft label",
        lambda c: _first(SOFT_LABELS, c) is not None and (_has_pair(c) or {"chosen", "rejected"} <= c),
        parse_soft_label,
        "prompt, response_a, response_b, prob_b (or chosen, rejected, p_hat)",
    ),
    Layout(
        "two responses and a label",
        lambda c: _has_pair(c) and (_first((*PAIR_LABELS, *SIGNED_LABELS), c) is not None or "votes" in c),
        parse_two_responses,
        "prompt, response_1, response_2, label (1, 2, 0 = tie), preference_strength (-3 to 3) or votes",
    ),
    Layout("sharegpt ranking", _has("conversations", "chosen", "rejected"), parse_sharegpt, "conversations, chosen {from, value}, rejected {from, value}"),
    Layout(
        "messages and rejected",
        lambda c: "messages" in c and ("rejected_response" in c or "rejected_messages" in c),
        parse_messages_rejected,
        "messages, rejected_response | rejected_messages",
    ),
    Layout(
        "alpaca ranking",
        lambda c: "instruction" in c and "prompt" not in c and {"chosen", "rejected"} <= c,
        parse_alpaca,
        "instruction, input, chosen, rejected [, system, history]",
    ),
    Layout("chosen and rejected", _has("chosen", "rejected"), parse_chosen_rejected, "[prompt,] chosen, rejected [, margin, weight, tools]"),
    Layout(
        "labelled response",
        lambda c: _has_single(c) and _first(SINGLE_LABELS, c) is not None,
        parse_labelled,
        "prompt, completion, label (true, false) or response, is_correct",
        compares=False,
    ),
    Layout("rated response", lambda c: _has_single(c) and _first(SINGLE_SCORES, c) is not None, parse_rated, "prompt, response, score", compares=False),
    Layout(
        "rated attributes",
        lambda c: _has_single(c) and len(set(ATTRIBUTES) & c) >= 2,
        parse_attributes,
        "prompt, response, helpfulness, correctness, coherence, complexity, verbosity",
        compares=False,
    ),
    Layout("prompt and response", _has_single, parse_prompt_response, "prompt, response", compares=False),
    Layout("messages", lambda c: "messages" in c or "conversations" in c, parse_messages, "messages", compares=False),
)


def detect_layout(columns: Iterable[str]) -> Layout:
    """The layout that these columns make. Raises DataError with the nearest names when none does."""
    names = frozenset(columns)
    for layout in LAYOUTS:
        if layout.recognised(names):
            return layout
    known = ["prompt", "chosen", "rejected", "responses", "scores", "response", "messages", "completion", "label", "response_1", "response_2"]
    near = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.6) for name in sorted(names) if name not in known}
    hints = "".join(f"; did you mean `{match[0]}` by `{name}`?" for name, match in near.items() if match)
    table = "\n".join(f"  {layout.columns}" for layout in LAYOUTS)
    raise DataError(
        f"no known layout has the columns {', '.join(sorted(names)) or '(none)'}{hints}\nKnown layouts:\n{table}\n"
        "Rename the columns, or map them with data.columns, e.g. {chosen: better, rejected: worse}."
    )


def parse_row(row: Row, layout: Layout | None = None, *, margins: bool = True, strengths: bool = False, compared: bool = True) -> PreferenceGroup:
    """One row as a PreferenceGroup. Raises RowError (kind, message) when the row does not hold what its layout promises.

    `margins=False` leaves a `margin` column unread: a pair with an unusable margin is still a pair where no loss asks for it. `strengths=True` reads a
    `strength` column.
    `compared=False` is for scoring: empty and identical responses are rows like any other.
    """
    layout = layout or detect_layout(row)
    unread = {name for name, read in (("margin", margins), ("strength", strengths)) if not read}
    if unread & row.keys():
        row = {key: value for key, value in row.items() if key not in unread}
    if not layout.recognised(frozenset(row)):
        wanted = [name for name in re.findall(r"\w+", layout.columns) if name not in row]
        near = {name: match[0] for name in wanted if (match := difflib.get_close_matches(name, row, n=1))}
        hint = "".join(f"; did you mean `{name}` by `{column}`?" for name, column in near.items())
        raise RowError("missing column", f"has columns {', '.join(sorted(row))}, but the first row was of layout `{layout.name}`: {layout.columns}{hint}")
    if media := [name for name in MEDIA if row.get(name)]:
        raise RowError("media", f"column `{media[0]}` holds pictures or sound, which a text reward model cannot see; leave such rows out")
    try:
        group = layout.parse(row)
    except RowError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RowError("malformed", f"does not read as layout `{layout.name}` ({layout.columns}): {type(error).__name__}: {error}") from error
    if compared and (problem := side_problem(group)):
        raise RowError(*problem)
    return group


def side_problem(group: PreferenceGroup) -> tuple[str, str] | None:
    """What makes a group useless for comparing: an empty response, or two compared responses that are the same."""
    for i, response in enumerate(group.responses, 1):
        if not (response if isinstance(response, TokenIds) else text_of(response).strip()):
            return "empty side", f"response {i} of {len(group.responses)} is empty; nothing can be learned from it"
    for c in group.comparisons:
        if not c.is_tie and group.responses[c.chosen] == group.responses[c.rejected]:
            return "identical sides", "the preferred and the other response are the same text; nothing can be learned from the pair"
    return None
