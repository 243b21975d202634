"""BOS once, EOS at every end, a response never cut, everything counted: on tokenizers like Qwen's, Llama's and BERT's."""

from __future__ import annotations

import pytest
from tests.conftest import TOKENIZERS, bert_tokenizer, chatml_tokenizer, llama_tokenizer

from palate.data.loading import load_groups
from palate.data.tokenization import Encoder, EncodeReport, as_exchange, closed_template, common_prefix, framing_rules, prepare_tokenizer, read_chat_template
from palate.errors import ConfigError, DataError, ModelError
from palate.types import Exchange, TokenIds

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
