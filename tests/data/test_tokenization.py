"""BOS once, EOS at every end, a response never cut, everything counted: on tokenizers like Qwen's, Llama's and BERT's."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest
from tests.conftest import TOKENIZERS, bert_tokenizer, chatml_tokenizer, llama_tokenizer

from palate.data.loading import load_groups
from palate.data.pairing import with_off_topic
from palate.data.supervision import supervised
from palate.data.templates import closed_template, framing_rules, prepare_tokenizer, read_chat_template
from palate.data.tokenization import Encoder, EncodeReport, as_exchange, common_prefix
from palate.errors import ConfigError, DataError, ModelError, RowError
from palate.types import Comparison, Exchange, MarginRule, PreferenceGroup, Step, Supervision, TokenIds

CHAT = Exchange(({"role": "user", "content": "what is paris?"},), ({"role": "assistant", "content": "the capital"},))
TEXT = Exchange("what is paris?", "the capital")


def encoder(kind: str, **options) -> Encoder:
    template = "plain" if kind == "bert" else None
    return Encoder(prepare_tokenizer(TOKENIZERS[kind](), chat_template=template), **{"max_length": 128, **options})


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("exchange", [CHAT, TEXT], ids=["chat", "text"])
def test_one_prefix_and_one_eos(kind: str, exchange: Exchange) -> None:
    e = encoder(kind)
    ids = e.encode([exchange])[0]
    rules = e.rules
    assert ids[: len(rules.prefix)] == rules.prefix
    assert ids[-1] == rules.eos_id
    if rules.prefix:
        assert ids.count(rules.prefix[0]) == 1, "a double BOS changes the score"
    turns = 2 if (kind, exchange) in (("qwen3", CHAT), ("llama", CHAT)) else 1  # these templates end every turn with EOS
    assert ids.count(rules.eos_id) == turns


def test_a_blank_after_the_last_turn_does_not_stand_behind_eos() -> None:
    """ChatML leaves "\\n" after <|im_end|>; the pooled token must be <|im_end|>, as at training so at scoring, in any tool."""
    messages = [*CHAT.prompt, *CHAT.response]
    raw = chatml_tokenizer().apply_chat_template(messages, tokenize=True)["input_ids"]
    e = encoder("qwen3")
    assert e.tokenizer.decode(raw[-1]) == "\n"
    assert e.encode([CHAT])[0] == raw[:-1] == e.tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]


def test_eos_is_added_where_the_template_leaves_it_out() -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    e = Encoder(prepare_tokenizer(tokenizer), max_length=64)
    assert e.render(CHAT) == "what is paris? the capital<|im_end|>"
    assert closed_template(e.tokenizer.chat_template) == e.tokenizer.chat_template, "closing twice changes nothing"


def test_generation_prompts_stay_as_they_were() -> None:
    closed = encoder("qwen3").tokenizer
    assert closed.apply_chat_template(list(CHAT.prompt), tokenize=False, add_generation_prompt=True).endswith("<|im_start|>assistant\n")


def test_a_foreign_template_is_left_alone() -> None:
    e = Encoder(prepare_tokenizer(chatml_tokenizer(), close=False), max_length=64)
    assert e.tokenizer.decode(e.encode([CHAT])[0][-1]) == "\n"
    assert e.encode([TEXT])[0][-1] == e.rules.eos_id


def test_bos_written_by_the_template_is_not_doubled() -> None:
    e = encoder("llama")
    assert e.render(CHAT).startswith("[user]"), "the golden text leaves BOS to the tokenizer"
    assert e.encode([CHAT])[0] == e.tokenizer(e.render(CHAT))["input_ids"]


def test_the_rendered_text_gives_the_same_ids_in_any_tool() -> None:
    """What pipelines do: tokenizer(text). For BERT-likes the tokenizer adds [CLS] and [SEP] itself."""
    e = encoder("bert")
    assert e.encode([CHAT])[0] == e.tokenizer(e.render(CHAT))["input_ids"]


def test_the_separator_only_stands_where_words_would_fuse() -> None:
    e = encoder("qwen3")
    assert e.render(Exchange("Say", "hello")) == "Say\n\nhello"
    assert e.render(Exchange("Say", " hello")) == "Say hello"
    assert e.render(Exchange("Say\n", "hello")) == "Say\nhello"
    assert e.render(Exchange("", "hello")) == "hello"
    assert encoder("qwen3", separator="").render(Exchange("Say", "hello")) == "Sayhello"


def test_messages_without_a_template_are_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match="no chat template.*plain"):
        Encoder(prepare_tokenizer(bert_tokenizer()), max_length=64).encode([CHAT])


def test_the_pad_token_is_never_eos() -> None:
    llama = prepare_tokenizer(llama_tokenizer())
    assert llama.pad_token == "<|pad|>" and llama.pad_token_id != llama.eos_token_id
    same = chatml_tokenizer()
    same.pad_token = same.eos_token
    assert prepare_tokenizer(same).pad_token_id != same.eos_token_id
    kept = prepare_tokenizer(chatml_tokenizer())
    assert kept.pad_token == "<|endoftext|>" and kept.padding_side == "right"
    with pytest.raises(ModelError, match="'<nope>' is not in the vocabulary"):
        prepare_tokenizer(chatml_tokenizer(), pad_token="<nope>")
    with pytest.raises(ModelError, match="is the EOS token"):
        prepare_tokenizer(chatml_tokenizer(), pad_token="<|im_end|>")


def test_token_ids_are_used_as_they_are() -> None:
    assert encoder("llama").encode([Exchange("", TokenIds([5, 6, 7]))]) == [[5, 6, 7]]


def rows(*lengths: tuple[int, int, int]) -> list[dict]:
    """(prompt, chosen, rejected) in words."""
    return [{"prompt": "the " * p, "chosen": "fox " * c, "rejected": "dog " * r} for p, c, r in lengths]


def encode(e: Encoder, data: list[dict], **options):
    report = EncodeReport()
    return list(e.encode_groups(load_groups(data, name="x").groups, report, **options)), report


def test_long_pairs_are_dropped_and_counted() -> None:
    kept, report = encode(encoder("qwen3", max_length=20), rows((3, 3, 3), (3, 40, 3), (40, 3, 3)))
    assert len(kept) == 1
    assert report.as_dict()["x"] == {"groups": 3, "kept": 1, "cut": 0, "dropped": {"longer than 20 tokens": 2}}


def test_cutting_takes_the_start_of_the_prompt_only() -> None:
    e = encoder("llama", max_length=20, length_policy="truncate_prompt")
    full = encoder("llama")
    data = rows((3, 3, 3), (40, 3, 4), (3, 40, 3))
    kept, report = encode(e, data)
    assert report.as_dict()["x"] == {"groups": 3, "kept": 2, "cut": 1, "dropped": {"with a response longer than 20 tokens": 1}}
    whole = full.encode(load_groups(data).groups[1].exchanges())
    for short, ids in zip(kept[1].token_ids, whole, strict=True):
        assert len(short) == 20
        assert short[0] == e.rules.prefix[0] and short[1:] == ids[len(ids) - 19 :], "BOS stays, the response's end stays"


def test_the_error_policy_names_the_row() -> None:
    with pytest.raises(DataError, match=r"list row 2: \d+ tokens, more than max_length 20"):
        encode(encoder("qwen3", max_length=20, length_policy="error"), rows((3, 3, 3), (3, 40, 3)))


def test_pairs_that_become_identical_are_counted() -> None:
    """Two texts that tokenize alike (blanks after the last word are not kept by a chat template)."""
    data = [{"prompt": [{"role": "user", "content": "p"}], "chosen": "same", "rejected": "same "}]
    e = Encoder(prepare_tokenizer(bert_tokenizer(), chat_template="plain"), max_length=64)
    kept, report = encode(e, data)
    assert not kept and report.as_dict()["x"]["dropped"] == {"with identical token ids on both sides": 1}


def test_ties_are_dropped_or_soft_and_counted() -> None:
    data = [{"prompt": "p", "response_1": "a", "response_2": "b", "label": 0}, {"prompt": "p", "response_1": "a", "response_2": "b", "label": 1}]
    kept, report = encode(encoder("qwen3"), data)
    assert len(kept) == 1 and report.as_dict()["x"]["dropped"] == {"tied": 1}
    assert len(encode(encoder("qwen3"), data, ties="soft")[0]) == 2
    single, report = encode(encoder("qwen3"), [{"prompt": "p", "response": "r"}])
    assert not single and report.as_dict()["x"]["dropped"] == {"without a comparison": 1}


def test_rows_that_a_template_refuses_are_counted() -> None:
    """Gemma-like templates raise on a system role; one such row must not end the run, nor vanish uncounted."""
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tokenizer.chat_template
    e = Encoder(prepare_tokenizer(tokenizer), max_length=64)
    asked = {"role": "user", "content": "p"}
    data = [{"prompt": [asked], "chosen": "a", "rejected": "b"}, {"prompt": [{"role": "system", "content": "s"}, asked], "chosen": "a", "rejected": "b"}]
    kept, report = encode(e, data)
    assert len(kept) == 1 and report.as_dict()["x"]["dropped"] == {"refused by the chat template: no system role": 1}


def test_a_template_with_a_clock_renders_the_same_every_day() -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} " + tokenizer.chat_template
    assert Encoder(prepare_tokenizer(tokenizer), max_length=64).render(CHAT).startswith("26 Jul 2024 <|im_start|>")


def test_comparisons_of_weight_zero_take_no_part() -> None:
    kept, report = encode(encoder("qwen3"), [{"prompt": "p", "chosen": "a", "rejected": "b", "weight": w} for w in (0, 2)])
    assert [k.group.comparisons[0].weight for k in kept] == [2.0] and report.as_dict()["x"]["dropped"] == {"of weight 0": 1}


def test_a_template_can_be_taken_from_another_model(base_models) -> None:
    assert read_chat_template(str(base_models["qwen3"])) == closed_template(chatml_tokenizer().chat_template)


def test_tools_reach_the_template() -> None:
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = "{% if tools %}T:{{ tools[0]['name'] }} {% endif %}" + tokenizer.chat_template
    e = Encoder(prepare_tokenizer(tokenizer), max_length=None)
    assert e.render(CHAT._replace(template_args={"tools": [{"name": "search"}]})).startswith("T:search ")


def test_as_exchange_takes_what_people_pass() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert as_exchange(messages) == Exchange((messages[0],), (messages[1],))
    assert as_exchange(tuple(messages)) == as_exchange(messages)
    assert as_exchange("text") == Exchange("", "text")
    assert as_exchange(("p", "r")) == Exchange("p", "r")
    assert as_exchange(([messages[0]], [messages[1]])) == Exchange((messages[0],), (messages[1],))
    with pytest.raises(DataError, match="cannot score int"):
        as_exchange(3)  # type: ignore[arg-type]


def test_templates_by_name_file_or_text(tmp_path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    assert read_chat_template(str(tmp_path / "t.jinja")) == "{{ messages }}"
    assert "assistant:" in read_chat_template("plain")
    with pytest.raises(ConfigError, match="no file"):
        read_chat_template("missing.jinja")
    with pytest.raises(ConfigError, match="expected `plain`"):
        read_chat_template("chatml")


def test_small_rules() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2
    assert framing_rules(bert_tokenizer()).eos_id == bert_tokenizer().sep_token_id
    with pytest.raises(ConfigError, match="max_length is 2"):
        encoder("llama", max_length=2)
    with pytest.raises(ConfigError, match="length_policy is 'cut'"):
        encoder("llama", length_policy="cut")


# --- steps ----------------------------------------------------------------------------------------------------------------------------------------


def in_steps(kind: str, prompt: str, *steps: str) -> Exchange:
    response = "\n".join(steps)
    return Exchange(prompt, response) if kind == "text" else Exchange(({"role": "user", "content": prompt},), ({"role": "assistant", "content": response},))


GOLDEN_STEPS = {  # of two steps: positions in the ids, and the tokens that stand there
    ("qwen3", "text"): ([9, 11], ["\n", " four"]),
    ("qwen3", "chat"): ([23, 25], ["\n", " four"]),
    ("llama", "text"): ([10, 12], ["\n", " four"]),
    ("llama", "chat"): ([24, 26], ["\n", " four"]),
    ("bert", "text"): ([10, 12], ["\n", " four"]),
    ("bert", "chat"): ([21, 23], ["\n", " four"]),
}


@pytest.mark.parametrize(("kind", "form"), GOLDEN_STEPS)
def test_golden_step_ends(kind: str, form: str) -> None:
    """BOS (or [CLS]) moves every position by one; the first step ends with the line break, the last with its own last token, before EOS."""
    e = encoder(kind)
    exchange = in_steps(form, "what is two?", "two plus two", "is four")
    ids = e.encode([exchange])[0]
    ends, tokens = GOLDEN_STEPS[kind, form]
    assert e.step_ends(exchange, ["two plus two", "is four"]) == ends
    assert [e.tokenizer.decode(ids[end]) for end in ends] == tokens


STEPS: dict[str, tuple[str, list[str], list[str]]] = {
    "plain": ("what is two?", ["two plus two", "is four"], ["two plus two\n", "two plus two\nis four"]),
    "one step": ("p", ["the sea"], ["the sea"]),
    "the same text three times": ("p", ["the sea", "the sea", "the sea"], ["the sea\n", "the sea\nthe sea\n", "the sea\nthe sea\nthe sea"]),
    "a step that begins another": ("p", ["the", "the sea", "the"], ["the\n", "the\nthe sea\n", "the\nthe sea\nthe"]),
    "steps that the prompt holds too": ("the sea\nthe wind", ["the sea", "the wind"], ["the sea\n", "the sea\nthe wind"]),
    "the prompt is the response": ("the sea\nthe wind", ["the sea\nthe wind"], ["the sea\nthe wind"]),
    "steps of several lines": ("p", ["two\nplus", "two"], ["two\nplus\n", "two\nplus\ntwo"]),
    "blanks around a step": ("p", ["the sea ", " the wind"], ["the sea \n", "the sea \n the wind"]),
    "empty lines between steps": ("p", ["the sea\n", "the wind"], ["the sea\n\n", "the sea\n\nthe wind"]),
    "letters of several bytes at the end": ("p", ["the café", "the sea"], ["the café\n", "the café\nthe sea"]),
    "letters of several bytes at the beginning": ("p", ["the sea", "élan", "∴ four"], ["the sea\n", "the sea\nélan\n", "the sea\nélan\n∴ four"]),
}
"""Name -> (prompt, steps, what has been read of the response at the end of each)."""


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_step_ends_with_the_last_token_before_the_next(kind: str, form: str, name: str) -> None:
    prompt, steps, read = STEPS[name]
    e = encoder(kind, max_length=256)
    exchange = in_steps(form, prompt, *steps)
    ids, text = e.encode([exchange])[0], e.render(exchange)
    before = text[: text.rindex("\n".join(steps).strip())]
    ends = e.step_ends(exchange, steps)
    assert [e.tokenizer.decode(ids[len(e.rules.prefix) : end + 1]) for end in ends] == [before + part for part in read]


@pytest.mark.parametrize(("kind", "response"), [("llama", "s"), ("qwen3", "end"), ("qwen3", "im")])
def test_a_step_is_not_looked_for_in_the_end_of_the_turn(kind: str, response: str) -> None:
    """`s` stands in `</s>`, `end` in `<|im_end|>`: the step ends with its own last token, not with EOS."""
    e = encoder(kind)
    exchange = in_steps("chat", "p", response)
    (end,) = e.step_ends(exchange, [response])
    assert e.tokenizer.decode(e.encode([exchange])[0][: end + 1]).endswith(f"{' ' if kind == 'llama' else chr(10)}{response}")


def test_a_step_of_another_text_is_refused() -> None:
    e = encoder("qwen3")
    exchange = in_steps("text", "the wind", "the sea", "the fox")
    for steps, number, kind in (
        (["the sea", "the dog"], 2, "not text"),
        (["the fox", "the sea"], 2, "not text"),  # in another order
        (["the wind"], 1, "not text"),  # of the prompt
        (["the sea", " \n"], 2, "empty step"),
        (["", "the sea"], 1, "empty step"),
    ):
        with pytest.raises(RowError, match=f"step {number} of {len(steps)}, .* is not in the text of the response") as caught:
            e.step_ends(exchange, steps)
        assert caught.value.kind == kind
    with pytest.raises(RowError, match="cannot be found in a response of token ids"):
        e.step_ends(Exchange("", TokenIds([1, 2])), ["a"])


def test_no_steps_have_no_ends() -> None:
    """An empty response, when it is scored."""
    assert encoder("qwen3").step_ends(in_steps("text", "the wind"), []) == []


def test_steps_are_not_looked_for_in_the_prompt() -> None:
    """A template that rewrites the response (joins its lines): its steps stand in the response or nowhere, although the prompt has the same words."""
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("m['content']", "m['content'].replace('\\n', ' ')")
    e = Encoder(prepare_tokenizer(tokenizer), max_length=None)
    exchange = in_steps("chat", "the sea\nthe wind", "the sea", "the wind")
    ids = e.encode([exchange])[0]
    with contextlib.suppress(RowError):
        assert min(e.step_ends(exchange, ["the sea", "the wind"])) >= e.prompt_length(exchange, ids)


# --- what a cut prompt moves ----------------------------------------------------------------------------------------------------------------------

STEPWISE = Supervision(comparisons=False, reads="steps", classes=2)


@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_step_ends_move_with_a_cut_prompt(kind: str, form: str) -> None:
    """Counted from the end of the sequence, nothing moves."""
    whole, short = encoder(kind, max_length=256), encoder(kind, max_length=20, length_policy="truncate_prompt")
    exchange = in_steps(form, "the " * 40, "two plus two", "is four")
    steps = (Step("two plus two", 1), Step("is four", 0))
    group = PreferenceGroup(exchange.prompt, (exchange.response,), steps=steps)
    report = EncodeReport()
    (kept,) = short.encode_groups([group], report, supervision=STEPWISE)
    full = whole.encode([exchange])[0]
    assert len(kept.token_ids[0]) == 20 and kept.cut == len(full) - 20 > 0
    assert [20 - end for end in kept.step_ends] == [len(full) - end for end in whole.step_ends(exchange, [step.text for step in steps])]
    assert [kept.token_ids[0][end] for end in kept.step_ends] == [full[end + kept.cut] for end in kept.step_ends]
    assert report.facts["steps"] == 2 and report.cut["data"] == 1


FRAMES = {
    ("qwen3", "text"): ("\n\n", "<|im_end|>"),
    ("llama", "text"): ("\n\n", "</s>"),
    ("bert", "text"): ("\n\n", "[SEP]"),
    ("qwen3", "chat"): ("", "<|im_end|>"),
    ("llama", "chat"): ("[assistant] ", " </s>"),  # a template without a generation prompt: the turn's head is not the prompt's
    ("bert", "chat"): (" ", "[SEP]"),
}
"""What belongs to a response beside its own text: the separator, what the template writes behind the generation prompt, EOS."""


@pytest.mark.parametrize("supervision", [Supervision(lengths=True), Supervision(text=True), Supervision(reads="response")], ids=["lengths", "text", "response"])
@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_responses_start_behind_their_prompt_cut_or_not(kind: str, form: str, supervision: Supervision) -> None:
    prompt = "the " * 40 + "sea"
    sides = [in_steps(form, prompt, response) for response in ("the fox", "the dog and the fox")]
    group = PreferenceGroup(sides[0].prompt, tuple(side.response for side in sides), (Comparison(0, 1),))
    for limit in (256, 24):
        e = encoder(kind, max_length=limit, length_policy="truncate_prompt")
        (kept,) = e.encode_groups([group], EncodeReport(), supervision=supervision)
        own = [e.tokenizer.decode(ids[start:]) for ids, start in zip(kept.token_ids, kept.starts, strict=True)]
        before, after = FRAMES[kind, form]
        assert own == [f"{before}{side}{after}" for side in ("the fox", "the dog and the fox")]


def test_starts_are_only_looked_for_where_they_are_read() -> None:
    group = PreferenceGroup("p", ("a", "b"), (Comparison(0, 1),))
    for supervision in (Supervision(), Supervision(reads="divergence"), Supervision(ranks=True)):
        (kept,) = encoder("qwen3").encode_groups([group], EncodeReport(), supervision=supervision)
        assert kept.starts == () and kept.step_ends == ()


IDS = PreferenceGroup("", tuple(TokenIds([*range(10, 20), *own]) for own in ([30, 31], [40])), (Comparison(0, 1),))
"""Sides that arrived as token ids, ten of them shared."""


@pytest.mark.parametrize("limit", [None, 8])
def test_token_ids_start_within_what_is_left_of_them(limit: int | None) -> None:
    e = encoder("qwen3", max_length=limit, length_policy="truncate_prompt")
    (kept,) = e.encode_groups([IDS], EncodeReport(), supervision=Supervision(lengths=True))
    assert all(0 <= start < len(ids) for ids, start in zip(kept.token_ids, kept.starts, strict=True))


def test_what_token_ids_share_is_their_prompt() -> None:
    """As it is where a prompt is cut: the response's length and text are its own."""
    (kept,) = encoder("qwen3").encode_groups([IDS], EncodeReport(), supervision=Supervision(lengths=True))
    assert [ids[start:] for ids, start in zip(kept.token_ids, kept.starts, strict=True)] == [[30, 31], [40]]


def test_sides_that_are_compared_token_by_token_keep_the_same_prompt() -> None:
    """Where responses of unlike length lose the start of one prompt, the tokens of both sides must still stand at the same places."""
    group = PreferenceGroup("the " * 40, ("the fox", "the dog and the fox and the sea"), (Comparison(0, 1),))
    kept = {}
    for limit in (None, 24):
        e = encoder("qwen3", max_length=limit, length_policy="truncate_prompt")
        (kept[limit],) = e.encode_groups([group], EncodeReport(), supervision=Supervision(reads="divergence"))
    parted = {limit: [ids[common_prefix(one.token_ids) :] for ids in one.token_ids] for limit, one in kept.items()}
    assert parted[24] == parted[None] and all(len(ids) <= 24 for ids in kept[24].token_ids)


def test_sides_that_cannot_be_compared_name_their_row() -> None:
    """One row of many: without its place nobody finds it."""
    data = [{"prompt": "p", "chosen": "the sea", "rejected": "the wind"}, {"chosen_ids": [5, 6, 7], "rejected_ids": [8, 6, 7]}]
    groups = [group for row in data for group in load_groups([row], name="x").groups]
    groups[1] = replace(groups[1], metadata={**groups[1].metadata, "location": "x row 2"})
    with pytest.raises(DataError, match="x row 2: the first token of both sides differs"):
        list(encoder("qwen3").encode_groups(groups, EncodeReport(), supervision=Supervision(reads="divergence")))


# --- what is kept, and why not --------------------------------------------------------------------------------------------------------------------

DECIDED, TIED, WEIGHTLESS = Comparison(0, 1), Comparison(0, 1, probability=0.5), Comparison(0, 1, weight=0.0)
LISTWISE, BY_HELP = Supervision(comparisons=False, ranks=True), Supervision(comparisons=False, ranks=True, rank_by="help")
RATED = Supervision(comparisons=False, attributes=("help", "truth"))
SCALED = Supervision(scaled=True)
LAST_STEP = Supervision(comparisons=False, reads="steps", classes=2, last_step_only=True)


def pair(*comparisons: Comparison, **columns: Any) -> PreferenceGroup:
    return PreferenceGroup("p", ("a", "b"), comparisons, **columns)


def stepwise(*labels: int | None) -> PreferenceGroup:
    return PreferenceGroup("p", ("\n".join(f"s{i}" for i in range(len(labels))),), steps=tuple(Step(f"s{i}", label) for i, label in enumerate(labels)))


REASONS: dict[str, tuple[PreferenceGroup, Supervision, str, str | None]] = {
    "a pair": (pair(DECIDED), Supervision(), "drop", None),
    "no comparison": (pair(), Supervision(), "drop", "without a comparison"),
    "a tie": (pair(TIED), Supervision(), "drop", "tied"),
    "a soft tie": (pair(TIED), Supervision(), "soft", None),
    "weight 0": (pair(WEIGHTLESS), Supervision(), "drop", "of weight 0"),
    "a soft tie of weight 0": (pair(TIED._replace(weight=0.0)), Supervision(), "soft", "of weight 0"),
    "a margin to scale by": (pair(DECIDED._replace(margin=0.5)), SCALED, "drop", None),
    "no margin to scale by": (pair(DECIDED), SCALED, "drop", "without a margin to scale by"),
    "a soft tie to scale": (pair(TIED), SCALED, "soft", "without a margin to scale by"),
    "a strength that scales": (pair(DECIDED._replace(strength=2.0)), replace(SCALED, margins=MarginRule("strength")), "drop", None),
    "own ranks": (pair(ranks=(1.0, 2.0)), LISTWISE, "drop", None),
    "a ranking by comparisons": (pair(DECIDED), LISTWISE, "drop", None),
    "equal ranks": (pair(ranks=(1.0, 1.0)), LISTWISE, "drop", "without a ranking"),
    "one rank": (pair(ranks=(1.0, math.nan)), LISTWISE, "drop", "without a ranking"),
    "nothing to rank by": (pair(), LISTWISE, "drop", "without a ranking"),
    "different ratings": (pair(ratings=({"help": 1.0}, {"help": 2.0})), BY_HELP, "drop", None),
    "equal ratings": (pair(DECIDED, ratings=({"help": 1.0}, {"help": 1.0})), BY_HELP, "drop", "without different ratings of help"),
    "one of two attributes": (pair(ratings=({"truth": 1.0}, {})), RATED, "drop", None),
    "other attributes": (pair(DECIDED, ratings=({"style": 1.0}, {"style": 2.0})), RATED, "drop", "without a rating of help or truth"),
    "a labelled step": (stepwise(None, 1, None), STEPWISE, "drop", None),
    "steps without labels": (stepwise(None, None), STEPWISE, "drop", "without labelled steps"),
    "a labelled last step": (stepwise(None, 0), LAST_STEP, "drop", None),
    "a last step without a label": (stepwise(1, None), LAST_STEP, "drop", "without labelled steps"),
    "no steps": (pair(DECIDED), STEPWISE, "drop", "without labelled steps"),
    "either of two kinds": (pair(TIED, ratings=({"help": 1.0}, {})), replace(RATED, comparisons=True), "drop", None),
    "neither of two kinds": (pair(TIED), replace(RATED, comparisons=True), "drop", "tied and without a rating of help or truth"),
    "neither of three": (
        pair(),
        replace(RATED, comparisons=True, ranks=True),
        "drop",
        "without a comparison and without a ranking and without a rating of help or truth",
    ),
}
"""Name -> (group, what the loss reads, ties, why it is left out; None: it is kept)."""


@pytest.mark.parametrize("name", REASONS)
def test_what_is_kept_and_why_not(name: str) -> None:
    group, supervision, ties, reason = REASONS[name]
    report = EncodeReport()
    kept = list(encoder("qwen3").encode_groups([group], report, ties=ties, supervision=supervision))
    assert len(kept) == (reason is None)
    assert report.as_dict()["data"]["dropped"] == ({} if reason is None else {reason: 1})
    assert (report.groups["data"], report.kept["data"]) == (1, int(reason is None))


def test_a_group_is_kept_as_the_loss_reads_it() -> None:
    """Margins by the rule, comparisons that count, ranks that say something, the attributes that are asked for; the rest is not there."""
    group = PreferenceGroup(
        "p",
        ("a", "b", "c"),
        (Comparison(0, 1, strength=2.0), Comparison(1, 2, probability=0.5), Comparison(0, 2, margin=9.0, strength=1.0)),
        ratings=({"help": 1.0, "style": 3.0}, {}, {"style": 2.0, "truth": 0.0}),
        ranks=(1.0, 2.0, 2.0),
    )
    everything = Supervision(ranks=True, attributes=("help", "truth"), margins=MarginRule("strength", scale=0.5))
    taught = supervised(group, everything, "drop")
    assert taught is not None
    assert [(c.chosen, c.rejected, c.margin, c.weight) for c in taught.comparisons] == [(0, 1, 1.0, 0.5), (0, 2, 0.5, 0.5)]
    assert taught.ranks == (1, 2, 2) and taught.ratings == ({"help": 1.0}, {}, {"truth": 0.0}) and taught.steps == ()
    plain = supervised(group, Supervision(margins=MarginRule("none")), "soft")
    assert plain is not None
    assert [(c.margin, c.weight) for c in plain.comparisons] == [(0, 1 / 3)] * 3 and (plain.ranks, plain.ratings) == ((), ())
    scaled = supervised(group, replace(everything, scaled=True, margins=MarginRule()), "soft")
    assert scaled is not None and [(c.chosen, c.rejected, c.margin, c.weight) for c in scaled.comparisons] == [(0, 2, 9.0, 1.0)]


def test_facts_count_what_is_kept() -> None:
    groups = [
        PreferenceGroup("p", ("a", "b", "c"), (Comparison(0, 1, margin=1.0), TIED._replace(rejected=2)), ratings=({"help": 1.0}, {}, {"help": 2.0})),
        PreferenceGroup("p", ("a", "b"), (DECIDED,), ranks=(1.0, 2.0)),
        PreferenceGroup("p", ("a", "b"), (TIED,), ratings=({"truth": 1.0}, {})),
        stepwise(1, None, 0),
    ]
    report = EncodeReport()
    everything = Supervision(ranks=True, attributes=("help", "truth"))
    assert len(list(encoder("qwen3").encode_groups(groups, report, ties="soft", supervision=everything))) == 3
    facts = {"comparisons": 4, "ties": 2, "margins": 1, "rankings": 1, "rating help": 2, "rating truth": 1, "steps": 0}
    assert {name: report.facts[name] for name in facts} == facts
    steps = EncodeReport()
    list(encoder("qwen3").encode_groups(groups, steps, supervision=STEPWISE))
    assert steps.facts["steps"] == 2 and steps.as_dict()["data"]["dropped"] == {"without labelled steps": 3}


def test_steps_that_are_not_in_the_text_are_counted() -> None:
    """One such row neither ends the run nor takes its neighbours with it."""
    odd = PreferenceGroup("p", ("the sea",), steps=(Step("the wind", 1),))
    report = EncodeReport()
    kept = list(encoder("qwen3").encode_groups([stepwise(1), odd, stepwise(0)], report, supervision=STEPWISE))
    assert len(kept) == 2 and report.kept["data"] == 2 and report.groups["data"] == 3
    (reason,) = report.dropped["data"]
    assert reason.startswith("not text: step 1 of 1, 'the wind'")


def test_a_step_that_would_be_cut_when_it_is_scored_is_counted() -> None:
    """Unless the loss names another separator; steps are then joined by that."""
    group = PreferenceGroup("p", ("two\nplus\nfour",), steps=(Step("two\nplus", 1), Step("four", 0)))
    report = EncodeReport()
    assert not list(encoder("qwen3").encode_groups([group], report, supervision=STEPWISE))
    assert next(iter(report.dropped["data"])).startswith("step: a step holds the separator '\\n'")
    chat = replace(group, prompt=({"role": "user", "content": "p"},), responses=(({"role": "assistant", "content": group.responses[0]},),))
    for one in (group, chat):
        e = encoder("qwen3")
        (kept,) = e.encode_groups([one], EncodeReport(), supervision=replace(STEPWISE, separator="\n\n"))
        (ids,) = kept.token_ids
        assert "two\nplus\n\nfour" in e.tokenizer.decode(ids)
        assert [e.tokenizer.decode(ids[: end + 1]).rpartition("two")[2] for end in kept.step_ends] == ["\nplus\n\n", "\nplus\n\nfour"]


# --- off-topic negatives --------------------------------------------------------------------------------------------------------------------------


def with_negatives(own: PreferenceGroup, *others: str, length: int = 64) -> tuple[list[Any], EncodeReport]:
    """`own` encoded with a response to another prompt for each of `others`."""
    groups = [own, *(PreferenceGroup(f"q{i}", (text, "-"), (Comparison(0, 1),)) for i, text in enumerate(others))]
    report = EncodeReport()
    return list(encoder("qwen3", max_length=length).encode_groups(with_off_topic(groups, len(others), seed=0)[:1], report)), report


def test_off_topic_negatives_are_compared_with_the_best() -> None:
    (kept,), report = with_negatives(pair(DECIDED), "the sea", "the wind")
    assert [(c.chosen, c.rejected, c.weight) for c in kept.group.comparisons] == [(0, i, pytest.approx(1 / 3)) for i in (1, 2, 3)]
    assert len(kept.token_ids) == 4 and report.facts["comparisons"] == 3 and report.facts["off-topic negatives"] == 2


@pytest.mark.parametrize("others", [("a", "the sea"), ("the sea", "the sea " * 40)], ids=["the group's own text", "too long"])
def test_an_off_topic_response_never_costs_the_group(others: tuple[str, str]) -> None:
    """Short answers recur: "yes" beaten by "yes" would teach nothing. What does not fit is left out alone, whichever was drawn first."""
    for drawn in (others, others[::-1]):
        (kept,), report = with_negatives(pair(DECIDED), *drawn)
        assert [(c.chosen, c.rejected, c.weight) for c in kept.group.comparisons] == [(0, 1, 0.5), (0, 2, 0.5)]
        assert len(kept.token_ids) == 3 and "sea" in encoder("qwen3").tokenizer.decode(kept.token_ids[2])
        assert len(kept.group.responses) == 3 and report.kept["data"] == 1


@pytest.mark.parametrize("comparisons", [(DECIDED,), ()], ids=["by comparisons", "by own ranks"])
def test_off_topic_negatives_leave_a_ranking_standing(comparisons: tuple[Comparison, ...]) -> None:
    """A loss of pairs and lists: the list is that of the group, and what was added is not ranked."""
    own = PreferenceGroup("p", ("a", "b"), comparisons or (DECIDED,), ranks=() if comparisons else (1.0, 2.0))
    groups = with_off_topic([own, PreferenceGroup("q", ("the sea", "-"), (DECIDED,))], 1, seed=0)
    kept = list(encoder("qwen3").encode_groups(groups, EncodeReport(), supervision=Supervision(ranks=True)))
    best, worse, added = kept[0].group.ranks
    assert best < worse and math.isnan(added)


def test_a_foreign_template_ends_a_text_response_as_it_ends_a_message() -> None:
    """Chat prompt and text response go through the template too: one that was never closed is left as the other trainer saw it."""
    tokenizer = chatml_tokenizer()
    encoder = Encoder(tokenizer, max_length=None)
    assert not encoder.closed
    asked = ({"role": "user", "content": "hi"},)
    as_text, as_message = encoder.encode([Exchange(asked, "hello"), Exchange(asked, ({"role": "assistant", "content": "hello"},))])
    assert as_text == as_message
    plain = encoder.encode([Exchange("hi", "hello")])[0]
    assert plain[-1] == tokenizer.eos_token_id  # whole text ends with EOS under any template
