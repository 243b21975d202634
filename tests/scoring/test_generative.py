"""A language model as reward model and judge: log-odds by hand, order, critiques, and that a model trained on the rows gives the rewards it was taught."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import DECODER, chatml_tokenizer
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from palate.data.generative_rows import generative_rows, pair_messages, point_messages
from palate.errors import ConfigError, DataError
from palate.judging.combining import BothOrders
from palate.models.generative import label_logits
from palate.scoring.cache import CachedScorer
from palate.scoring.generative import Critiques, GenerativeScorer, PairwiseLogitJudge, load_generative_scorer, load_pairwise_judge
from palate.scoring.sources import open_scorer
from palate.types import Comparison, Exchange, Matchup, PreferenceGroup


def tokenizer_with_labels() -> PreTrainedTokenizerFast:
    """Trained vocabularies have these words as tokens; the tiny one is given them, with and without a blank before."""
    tokenizer = chatml_tokenizer()
    tokenizer.add_tokens(["Yes", "No", "Unsure", " Yes", " No", " A", " B", " C"])
    return tokenizer


TOKENIZER = tokenizer_with_labels()


def language_model(seed: int = 0, std: float = 0.15) -> Any:
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**{**DECODER, "max_position_embeddings": 2048}, head_dim=8, vocab_size=len(TOKENIZER)))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


MODEL = language_model()
ITEMS = [("what is the capital of france?", "paris"), ("two plus two", "four"), ("two plus two", "I cannot help with that. " * 4)]
MATCHUPS = [Matchup("two plus two", "four", "five"), Matchup("a poem", "the sea", "no"), Matchup("a poem", "no", "the sea")]


@torch.no_grad()
def logprob(text: str, token: str) -> float:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    return float(MODEL(input_ids=torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[TOKENIZER.convert_tokens_to_ids(token)])


def as_text(messages: Any) -> str:
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages) + "<|im_start|>assistant\n"


# --- rewards --------------------------------------------------------------------------------------------------------------------------------------


def test_the_reward_is_the_log_odds_of_yes() -> None:
    rewards = GenerativeScorer(MODEL, TOKENIZER, device="cpu", batch_size=2).score(ITEMS)
    by_hand = [logprob(text, "Yes") - logprob(text, "No") for text in (as_text(point_messages(*item)) for item in ITEMS)]
    np.testing.assert_allclose(rewards, by_hand, atol=1e-5)
    assert rewards.dtype == np.float32 and np.ptp(rewards) > 1e-3


def test_conversations_of_every_form_score_alike_and_labels_turn_the_sign() -> None:
    scorer = GenerativeScorer(MODEL, TOKENIZER, device="cpu")
    chat = [{"role": "user", "content": "two plus two"}, {"role": "assistant", "content": "four"}]
    assert len(set(scorer.score([ITEMS[1], chat, Exchange(*ITEMS[1])]).tolist())) == 1
    question = "Is it wrong?"
    one = GenerativeScorer(MODEL, TOKENIZER, question=question, device="cpu")
    assert one.score(ITEMS).tolist() != scorer.score(ITEMS).tolist() and question in one.messages(Exchange(*ITEMS[0]))[0]["content"]
    prompts = [scorer.messages(Exchange(*item)) for item in ITEMS]
    turned = label_logits(MODEL, TOKENIZER, prompts, ("No", "Yes"))
    np.testing.assert_allclose(scorer.score(ITEMS), -turned.log_odds("No", "Yes"), atol=1e-6)


def test_details_say_how_sure_and_how_much_else() -> None:
    _, details = GenerativeScorer(MODEL, TOKENIZER, device="cpu").score_detailed(ITEMS[:1])
    text = as_text(point_messages(*ITEMS[0]))
    yes, no = math.exp(logprob(text, "Yes")), math.exp(logprob(text, "No"))
    assert details[0]["probability"] == pytest.approx(yes / (yes + no), abs=1e-5)
    assert details[0]["missing_mass"] == pytest.approx(1 - yes - no, abs=1e-5)


def test_what_is_too_long_is_an_error_or_nan() -> None:
    scorer = GenerativeScorer(MODEL, TOKENIZER, device="cpu", max_length=250)
    items = [ITEMS[1], ("q", "word " * 300)]
    with pytest.raises(DataError, match=r"conversation 1 has \d+ tokens as a prompt, the limit is 250"):
        scorer.score(items)
    rewards = scorer.score(items, on_long="nan")
    assert np.isnan(rewards[1]) and rewards[0] == pytest.approx(float(GenerativeScorer(MODEL, TOKENIZER, device="cpu").score(items[:1])[0]), abs=1e-5)


# --- critiques ------------------------------------------------------------------------------------------------------------------------------------


def test_the_label_is_read_after_the_critique() -> None:
    scorer = GenerativeScorer(MODEL, TOKENIZER, device="cpu", critiques=Critiques(max_tokens=8))
    rewards, details = scorer.score_detailed(ITEMS)
    for item, reward, detail in zip(ITEMS, rewards, details, strict=True):
        (critique,) = detail["critiques"]
        text = f"{as_text(point_messages(*item, reasons=True))}{critique.strip()}\n\nVerdict:"
        assert reward == pytest.approx(logprob(text, " Yes") - logprob(text, " No"), abs=1e-5)
        assert detail["cut"] == 1 and critique  # a random model does not end by itself


def test_several_critiques_are_averaged_on_the_logit_scale() -> None:
    """The mean of log-odds, not the log-odds of a mean: and each critique is another text."""
    scorer = GenerativeScorer(MODEL, TOKENIZER, device="cpu", critiques=Critiques(3, temperature=1.0, max_tokens=8, seed=4))
    rewards, details = scorer.score_detailed(ITEMS)
    again = scorer.score([ITEMS[2], ITEMS[0]])
    np.testing.assert_allclose(again, rewards[[2, 0]], atol=1e-5)
    texts = details[0]["critiques"]
    assert len(set(texts)) == 3
    start = as_text(point_messages(*ITEMS[0], reasons=True))
    logits = [logprob(t, " Yes") - logprob(t, " No") for t in (f"{start}{text.strip()}\n\nVerdict:" for text in texts)]
    assert rewards[0] == pytest.approx(np.mean(logits), abs=1e-5)


def test_critiques_that_would_be_one_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="one text 4 times"):
        Critiques(4)
    with pytest.raises(ConfigError, match="expected samples"):
        Critiques(0)


# --- pairs ----------------------------------------------------------------------------------------------------------------------------------------


def test_a_verdict_is_the_log_odds_in_the_order_shown() -> None:
    judge = PairwiseLogitJudge(MODEL, TOKENIZER, device="cpu")
    for matchup, verdict in zip(MATCHUPS, judge.compare(MATCHUPS), strict=True):
        text = as_text(pair_messages(*matchup))
        logit = logprob(text, "A") - logprob(text, "B")
        assert verdict.logit == pytest.approx(logit, abs=1e-5)
        assert verdict.probability == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-5)
        assert verdict.winner == ("a" if logit > 0 else "b")


def test_both_orders_average_logits_and_mirror() -> None:
    judge = PairwiseLogitJudge(MODEL, TOKENIZER, device="cpu")
    first, second, mirrored = BothOrders(judge, "keep_mean").judge_pairs([MATCHUPS[0], *MATCHUPS[1:]])
    one, other = judge.compare([MATCHUPS[0], Matchup("two plus two", "five", "four")])
    assert first.logit == pytest.approx((one.logit - other.logit) / 2)
    assert first.position == pytest.approx((one.logit + other.logit) / 2)
    assert second.logit == pytest.approx(-mirrored.logit, abs=1e-6) and second.position == pytest.approx(mirrored.position, abs=1e-6)


def test_a_third_letter_counts_half() -> None:
    judge = PairwiseLogitJudge(MODEL, TOKENIZER, ties=True, device="cpu")
    for matchup, verdict in zip(MATCHUPS, judge.compare(MATCHUPS), strict=True):
        text = as_text(pair_messages(*matchup, labels=("A", "B", "C")))
        a, b, tie = (math.exp(logprob(text, letter)) for letter in "ABC")
        assert verdict.probability == pytest.approx((a + tie / 2) / (a + b + tie), abs=1e-5)
        assert verdict.logit == pytest.approx(math.log(a / b), abs=1e-5)
        assert verdict.winner == ("tie" if tie > max(a, b) else "a" if a > b else "b")


def test_a_pair_that_does_not_fit_is_invalid() -> None:
    verdicts = PairwiseLogitJudge(MODEL, TOKENIZER, max_length=300, device="cpu").compare([MATCHUPS[0], Matchup("q", "word " * 300, "x")])
    assert [verdict.winner == "invalid" for verdict in verdicts] == [False, True]
    assert "the limit is 300" in verdicts[1].reason and verdicts[1].logit is None


def test_reasons_come_before_the_letter() -> None:
    (verdict,) = PairwiseLogitJudge(MODEL, TOKENIZER, device="cpu", critiques=Critiques(max_tokens=6)).compare(MATCHUPS[:1])
    text = f"{as_text(pair_messages(*MATCHUPS[0], reasons=True))}{verdict.raw.strip()}\n\nVerdict:"
    assert verdict.logit == pytest.approx(logprob(text, " A") - logprob(text, " B"), abs=1e-5)


# --- trained on the rows --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["yes_no", "pair_label"])
def test_a_model_trained_on_the_rows_prefers_what_they_prefer(form: Any) -> None:
    """Rows and scorer must agree on prompt and label; a few steps on the label's token are enough for the sign."""
    groups = [
        PreferenceGroup(f"tell me about {topic}", ("Sure, here is what you asked for!", "No, go away, you fool."), (Comparison(0, 1),))
        for topic in ("the sea", "paris", "berlin", "the fox", "the dog", "the sky")
    ]
    rows = generative_rows(groups[:4], form, orders="both").rows
    model = language_model(1, std=0.05).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    prompts = [TOKENIZER(as_text(row["prompt"]), add_special_tokens=False)["input_ids"] for row in rows]
    labels = [TOKENIZER.convert_tokens_to_ids(row["completion"][0]["content"]) for row in rows]
    for _ in range(40):
        loss = torch.stack([-model(input_ids=torch.tensor([p])).logits[0, -1].log_softmax(-1)[y] for p, y in zip(prompts, labels, strict=True)]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if form == "yes_no":
        rewards = GenerativeScorer(model, TOKENIZER, device="cpu").score([exchange for group in groups for exchange in group.exchanges()])
        assert (rewards[::2] > 0).all() and (rewards[1::2] < 0).all()
    else:
        judgments = BothOrders(PairwiseLogitJudge(model, TOKENIZER, device="cpu")).judge_pairs([Matchup(g.prompt, *g.responses) for g in groups])
        assert [judgment.winner for judgment in judgments] == ["a"] * len(groups)


def test_a_folder_is_loaded_as_scorer_or_judge(tmp_path: Any) -> None:
    MODEL.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    rewards = load_generative_scorer(str(tmp_path), device="cpu").score(ITEMS)
    np.testing.assert_array_equal(rewards, GenerativeScorer(MODEL, TOKENIZER, device="cpu").score(ITEMS))
    assert load_pairwise_judge(str(tmp_path), device="cpu").compare(MATCHUPS) == PairwiseLogitJudge(MODEL, TOKENIZER, device="cpu").compare(MATCHUPS)


# --- references and identity ----------------------------------------------------------------------------------------------------------------------


def test_a_judge_of_pairs_is_shown_a_right_answer() -> None:
    """The judge's own by the prompt's text, or the call's; what it is asked is what the training rows with references hold."""
    judge = PairwiseLogitJudge(MODEL, TOKENIZER, device="cpu", references={"two plus two": "4"})
    own, none = judge.compare(MATCHUPS), judge.compare(MATCHUPS, references=[None] * 3)
    assert abs(own[0].logit - none[0].logit) > 1e-2  # type: ignore[operator]
    assert [one.logit for one in own[1:]] == pytest.approx([one.logit for one in none[1:]], abs=1e-5)
    assert judge.compare(MATCHUPS, references=["4", None, None])[0].logit == pytest.approx(own[0].logit, abs=1e-5)
    pair = PreferenceGroup("two plus two", ("four", "five"), (Comparison(0, 1),), metadata={"reference": "4"})
    rows = generative_rows([pair], "pair_label", orders="both", references=True).rows
    assert list(judge.messages(MATCHUPS[0], "4")) == rows[0]["prompt"]
    with pytest.raises(ConfigError, match="3 matchups and 1 references"):
        judge.compare(MATCHUPS, references=["4"])


def test_what_changes_a_reward_changes_the_identity() -> None:
    one = GenerativeScorer(MODEL, TOKENIZER, device="cpu")
    assert one.identity() == GenerativeScorer(MODEL, TOKENIZER, device="cpu", batch_size=3).identity()
    others = [
        GenerativeScorer(MODEL, TOKENIZER, device="cpu", question="Is it right?"),
        GenerativeScorer(MODEL, TOKENIZER, device="cpu", labels=("No", "Yes")),
        GenerativeScorer(MODEL, TOKENIZER, device="cpu", critiques=Critiques()),
        GenerativeScorer(MODEL, TOKENIZER, device="cpu", max_length=64),
        GenerativeScorer(MODEL, TOKENIZER, device="cpu", template_args={"enable_thinking": False}),
    ]
    assert len({str(scorer.identity()) for scorer in (one, *others)}) == 6


def test_rewards_of_a_named_source_are_computed_once(tmp_path: Any) -> None:
    """Two wordings of the model's folder would be two identities; one and the same is found in the cache."""
    folder = tmp_path / "lm"
    MODEL.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    one = open_scorer(f"genrm:{folder}", device="cpu")
    assert one.identity is not None and one.identity == open_scorer(f"genrm:{folder}", device="cpu").identity
    assert one.identity != open_scorer(f"genrm:{folder}", device="cpu", max_length=64).identity
    first = CachedScorer(one.scorer, tmp_path / "scores.sqlite", one.identity)
    again = CachedScorer(one.scorer, tmp_path / "scores.sqlite", one.identity)
    np.testing.assert_array_equal(first.score(ITEMS), again.score(ITEMS))
    assert (first.computed, again.computed, again.cached) == (3, 0, 3)
