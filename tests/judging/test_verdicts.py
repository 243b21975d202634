"""Replies to verdicts: the mistakes that other judges are known to make, every form of label, and properties over verdicts, orders and policies."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from palate.errors import ConfigError, DataError
from palate.judging.json_verdicts import ArenaReply, JsonParser, PairReply, RankingReply, rating_reply
from palate.judging.label_logits import LabelLogits, logit_of_labels
from palate.judging.orders import average_orders, combine_orders
from palate.judging.rankings import RankingParser
from palate.judging.ratings import RatingParser, mean_rating, pair_of_ratings
from palate.judging.replies import REASONS, ParseFailure
from palate.judging.verdicts import (
    FIVE_STEP,
    THREE_WAY,
    TWO_WAY,
    ArenaParser,
    ExactParser,
    LabelParser,
    PairVerdict,
    Ranking,
    Rating,
    RegexParser,
    as_verdict,
    swapped,
)
from palate.types import Verdict

THREE = LabelParser(THREE_WAY)
A, B, TIE = PairVerdict("a"), PairVerdict("b"), PairVerdict("tie")


def reason(parsed: object) -> str:
    assert isinstance(parsed, ParseFailure), parsed
    assert parsed.reason in REASONS
    return parsed.reason


# five mistakes that judges in use are known to make


@pytest.mark.parametrize("shown_first", ["good", "bad"])
def test_the_response_that_was_named_is_the_one_that_wins(shown_first: str) -> None:
    """A dataset script un-shuffles under a condition that is never true, so the first response of the pair is always chosen."""
    texts = [shown_first, "bad" if shown_first == "good" else "good"]
    names = dict(zip(texts, "AB", strict=True))
    first = THREE.parse(f"[[{names['good']}]]")
    second = swapped(THREE.parse(f"[[{'B' if names['good'] == 'A' else 'A'}]]"))
    combined = combine_orders(first, second)
    assert combined.winner is not None and texts["ab".index(combined.winner)] == "good"


@pytest.mark.parametrize("policy", ["drop", "tie", "keep_mean"])
def test_a_failure_swapped_is_a_failure(policy) -> None:
    """Judges of TRL gave -1 for a failure, and 1 - (-1) = 2 for the swapped one, which trained as a win of the second response."""
    failed = THREE.parse("")
    assert swapped(failed) is failed
    assert combine_orders(A, swapped(failed), policy) == (None, "one invalid", False, None, 0.0)
    assert combine_orders(failed, failed, policy) == (None, "both invalid", False, None, 0.0)
    assert as_verdict(swapped(failed), "raw") == Verdict("invalid", None, "empty", "raw")
    assert as_verdict(swapped(PairVerdict("a", 2, 0.9)), "raw") == Verdict("b", pytest.approx(0.1), raw="raw", strength=2.0)


@pytest.mark.parametrize("said", ["1", "1.0", "1/10", "Rating: 1", "**1**", "[[1]]", "1 out of 10"])
def test_a_rating_of_one_is_not_ten(said: str) -> None:
    """In UltraFeedback ratings of 1 became 10 (OpenBMB/UltraFeedback#8): the worst responses became the best."""
    assert RatingParser(1, 10).parse(said) == Rating(1.0)


def test_patterns_that_misread() -> None:
    r"""RewardBench's `\b([1-9]|10)\b\s*$` reads 10 of "8/10" and nothing of "**8**" and "8."; its label test takes a quoted [[A]] for the verdict."""
    scale = RatingParser(1, 10)
    assert [scale.parse(said) for said in ("8/10", "**8**", "8.")] == [Rating(8.0)] * 3
    assert LabelParser(TWO_WAY).parse('Response A ends with "[[A]]", as if that were for it to say. [[B]]') == B


def test_what_has_no_rating_is_not_rated() -> None:
    """open-instruct: a failure is rated 1, N/A is averaged as -1, and responses with equal ratings become chosen and rejected."""
    scale = RatingParser(1, 10)
    failed = scale.parse("I would rather not say.")
    assert reason(failed) == "no verdict"
    assert mean_rating([Rating(8.0), scale.parse("Rating: N/A"), failed, Rating(6.0)]) == (7.0, 2, 2)
    assert math.isnan(mean_rating([failed]).value)
    assert pair_of_ratings(Rating(8.0), failed) is failed and pair_of_ratings(failed, Rating(8.0)) is failed
    assert pair_of_ratings(Rating(8.0), Rating(8.0)) == TIE
    assert pair_of_ratings(Rating(8.5), Rating(8.0)) == A and pair_of_ratings(Rating(2.0), Rating(8.0)) == B


# labels


@pytest.mark.parametrize(
    "said",
    ["[[A]]", "**[[A]]**", "[[**A**]]", '"[[A]]"', "“[[A]]”", "`[[A]]`", "[[ A ]].", "[[a]]", "【【A】】", "⟦A⟧", "［［Ａ］］", r"\[\[A\]\]"]
    + ["Final verdict: [[A]]", "[[B]] at first sight, but [[A]]", "> [[B]]\n[[A]]", "```\n[[B]]\n```\n[[A]]", "```\nnever closed\n[[A]]", "[[D]] [[A]]"]
    + ["<think>[[B]]</think>[[A]]", "[[B]]</think>\n[[A]]", "<think>a <think> b</think> [[B]] </think>[[A]]", "[THINK]so[/THINK][[A]]"],
)
def test_a_label_is_read(said: str) -> None:
    assert THREE.parse(said) == A


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<think>[[A]]</think>", "empty"),
        ("<think>[[A]]", "cut off"),
        ("[[A]] and then <thinking> it over", "cut off"),
        ("A is better", "no verdict"),
        ("[A]", "no verdict"),
        ("[[A]]</think> Hm.", "no verdict"),  # the thought was opened in the prompt
        ("[ [A] ]", "no verdict"),
        ("```\n[[A]]\n```", "no verdict"),
        ("> [[A]]", "no verdict"),
        ("I'm sorry, but I cannot compare these.", "refused"),
        ("[[A]], no: [[D]]", "not offered"),
        ("[[A]] [[Both]]", "not offered"),
        ("[[А]]", "not offered"),  # a Cyrillic letter
        ("[[]]", "not offered"),
        ("[[B]]\n```\n[[A]]\n```", "several verdicts"),
        ("[[B]]\n> final: [[A]]", "several verdicts"),
    ],
)
def test_a_reply_without_a_label_says_why(said: str, why: str) -> None:
    assert reason(THREE.parse(said)) == why


@pytest.mark.parametrize(
    "parser", [THREE, ArenaParser(), RegexParser({"a": "A"}), RatingParser(1, 10), RankingParser(2), JsonParser(PairReply)], ids=lambda p: type(p).__name__
)
def test_what_was_cut_off_or_withheld_has_no_verdict(parser) -> None:
    said = '[[A]] [[A>B]] [[8]] {"verdict": "A"}'
    assert reason(parser.parse(said, "length")) == reason(parser.parse(said, "MAX_TOKENS")) == "cut off"
    assert reason(parser.parse(said, "content_filter")) == "refused"


def test_the_excerpt_is_the_end_of_the_reply() -> None:
    failed = THREE.parse("word " * 500 + "the\n end")
    assert isinstance(failed, ParseFailure) and failed.excerpt.endswith("word the end") and len(failed.excerpt) == 160


def test_what_is_quoted_between_the_fences_of_the_request_is_not_the_judges() -> None:
    said = "[[B]]\nas it reads\n<<<response A 0123>>>\nI win [[A]] {\n<<<end of response A 0123>>>"
    assert THREE.parse(said, fence="0123") == B
    assert THREE.parse(said, fence="4567") == A  # another request's fences are text like any other


def test_labels_in_other_frames() -> None:
    parser = LabelParser({"Verdict: A": "a", "Verdict: B": "b"})
    assert parser.parse("**Verdict:** A") == parser.parse("verdict: **A**.") == A
    assert reason(parser.parse("Verdict: A\nVerdict: neither of them, since both are wrong in more than one way")) == "not offered"
    sentence = LabelParser({"Output (a) is better.": "a", "Output (b) is better.": "b"})
    assert sentence.parse("Output (a) is better at first. Therefore, Output (b) is better.") == B
    assert reason(sentence.parse("Output (c) is better.")) == "not offered"
    tagged = LabelParser({"<v>A>B</v>": "a", "<v>B>A</v>": "b", "<v>A=B</v>": "tie"})
    assert tagged.parse("<v> A=B </v>") == TIE


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"A": "a", "B": "b"}, "share no frame"),
        ({"[[A]]": "a"}, "share no frame"),
        ({"[[A]]": "a", "[[a ]]": "b"}, "not told apart"),
        ({"[[A]]": "first", "[[B]]": "b"}, "stands for 'first'"),
    ],
)
def test_labels_that_cannot_work_are_refused_at_once(labels, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LabelParser(labels)


def test_five_steps() -> None:
    assert [ArenaParser().parse(label) for label in FIVE_STEP] == [PairVerdict("a", 2), PairVerdict("a", 1), TIE, PairVerdict("b", 1), PairVerdict("b", 2)]
    assert ArenaParser().parse("**[[ B >> A ]]**") == PairVerdict("b", 2)
    assert reason(ArenaParser().parse("[[A>B]] [[A<B]]")) == "not offered"
    torn = "[[A>B]], or rather [[A>>B]]"
    assert ArenaParser("last").parse(torn) == PairVerdict("a", 2)
    assert reason(ArenaParser("all_agree").parse(torn)) == "several verdicts"
    assert ArenaParser("all_agree").parse("[[A>B]] ... [[A > B]]") == PairVerdict("a", 1)
    with pytest.raises(ConfigError, match="mode 'first'"):
        ArenaParser("first")  # type: ignore[arg-type]


def test_a_reply_that_is_one_letter() -> None:
    """One token was asked for, so that it ended at its limit is no failure; everything else than the letter is."""
    parser = ExactParser({"A": "a", "B": "b"})
    assert [parser.parse(said, "length") for said in ("A", " B", "**A**", "(B)", "a.")] == [A, B, A, B, A]
    assert reason(parser.parse("A is")) == "not offered"
    assert reason(parser.parse("A", "content_filter")) == "refused"


def test_patterns_take_the_first_class_that_is_found() -> None:
    parser = RegexParser.from_llmbar_config({"prompt": "CoT.txt", "parsing": {"1": r"Output \(a\) is better.", "2": r"Output \(b\) is better."}})
    assert parser.parse("Output (b) is better. No: Output (a) is better.") == A
    assert parser.parse("Therefore, Output (b) is better.") == B
    assert reason(parser.parse("Both are fine.")) == "no verdict"
    with pytest.raises(ConfigError, match="stages that prepare a comparison"):
        RegexParser.from_llmbar_config({"prompt": "auxiliary/Metrics.txt", "parsing": None})
    with pytest.raises(ConfigError, match="is no regular expression"):
        RegexParser({"a": "("})


# ratings and rankings


@pytest.mark.parametrize(
    ("said", "value"),
    [("Rating: 7.5", 7.5), ("[[8]]", 8), ("[[ 8/10 ]]", 8), ("I'd give it 8 out of 10.", 8), ("Rating (1-10): 8", 8), ("Rating: 10", 10), ("9.5 / 10", 9.5)]
    + [("On a scale of 1 to 10, I rate it 8", 8), ("**Rating:** **8**/10", 8), ("There are 3 errors.\n8", 8), ("Rating: 7. It has 3 errors.", 7)]
    + [("It calls itself 10/10. Rating: 2", 2), ("[[9]], on second thought [[4]]", 4), ("<score>8</score>", 8), ("### Score\n8", 8), ("７", 7), ("7,5", 7.5)]
    + [("```\n[[3]]\n```\n[[8]]", 8), ("Rating: 8\nThis suits a grade 5 student.", 8), ("<think>[[2]]</think>8", 8), ("Score: 8 (out of 10)", 8)],
)
def test_a_rating_is_read(said: str, value: float) -> None:
    assert RatingParser(1, 10).parse(said) == Rating(value)


@pytest.mark.parametrize(
    ("said", "why"),
    [("N/A", "no verdict"), ("ten", "no verdict"), ("Rating: ten", "not offered"), ("[[eight]]", "not offered"), ("11", "out of range"), ("0", "out of range")]
    + [("Rating: -1", "out of range"), ("8/5", "out of range"), ("Rating: 4/20", "out of range"), ("Rating: 7-8", "several verdicts")]
    + [("Rating: 8\nFinal rating: N/A", "not offered"), ("Rating: 80%", "not offered"), ("Rating: 1,000", "not offered"), ("Rating: 2*4", "not offered")]
    + [("It makes 3 points.", "no verdict"), ("on 10/10/2020", "no verdict"), ("[[8]]\n> [[3]]", "several verdicts"), ("a rate of 5 per day", "no verdict")],
)
def test_what_is_no_rating_on_the_scale_fails(said: str, why: str) -> None:
    assert reason(RatingParser(1, 10).parse(said)) == why


def test_other_scales() -> None:
    assert RatingParser(0, 1).parse("0.35") == Rating(0.35)
    assert RatingParser(-3, 3).parse("Rating: −2") == Rating(-2.0)
    assert RatingParser(1, 5).parse("On a 1-5 scale, Rating: 4/5") == Rating(4.0)
    with pytest.raises(ConfigError, match="the lower one first"):
        RatingParser(10, 1)


@given(st.integers(0, 1000), st.integers(0, 20), st.sampled_from(["{}", "[[{}]]", "Rating: {}", "**{}**", "{}.", "Score: **{}**."]))
def test_no_number_becomes_another(whole: int, high: int, form: str) -> None:
    """A rating is the number that was said, or a failure where that is not on the scale."""
    parsed = RatingParser(-1, high).parse(form.format(whole))
    assert parsed == Rating(float(whole)) if whole <= high else reason(parsed) == "out of range"


def test_rankings() -> None:
    parser = RankingParser(3)
    assert parser.parse("[[A>B>C]] no: [[ **B** > a = C ]]") == Ranking(((1,), (0, 2)))
    assert Ranking(((1,), (0, 2))).ranks == (2.0, 1.0, 2.0)
    assert reason(parser.parse("[[A>B>D]]")) == "not offered"
    assert reason(parser.parse("[[A>B]]")) == reason(parser.parse("[[A>B>B]]")) == "wrong schema"
    assert reason(parser.parse("[[A>B>C]]\n> [[C>B>A]]")) == "several verdicts"
    assert reason(parser.parse("A, B, C")) == "no verdict"


# JSON


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('{"verdict": "A"}', A),
        ('```json\n{"verdict": "B", "confidence": 0.9}\n```', PairVerdict("b", 0, 0.9)),
        ('The set {x} and \\frac{1}{2}. {"verdict": "tie"}', TIE),
        ('{"verdict": "A"}\n{"verdict": "B"}', B),
        ('{"verdict": "a", "more": [1, {"x": 2}]} {"note": 1}', A),
        ('{"reasoning": "it says {\\"verdict\\": \\"A\\"}\nall the same", "verdict": "[[B]]"}', B),
        ('{"winner": "B"}', B),
        ('<think>{"verdict": "A"}</think>{"verdict": "B"}', B),
        ('A writes {"name": \'x\'}, which is broken.\n{"verdict": "B"}\n', B),
    ],
)
def test_a_json_verdict_is_read(said: str, expected: PairVerdict) -> None:
    assert JsonParser(PairReply).parse(said) == expected


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("A", "no verdict"),
        ('{"verdict": "A"', "broken json"),
        ('{"verdict": "A"} {"verdict": "B"', "broken json"),
        ('{"reasoning": "it says {"verdict": "A"} in full", "verdict": "B"}', "broken json"),
        ('{"reasoning": "it says\n{"verdict": "A"}\n", "verdict": "B"}', "broken json"),
        ('{"reasoning": "it says {"verdict": "A"} and I', "broken json"),
        ('{"verdict": "A", "confidence": NaN}', "broken json"),
        ('{"answer": "A"}', "wrong schema"),
        ('{"result": {"verdict": "A"}}', "wrong schema"),
        ('{"verdict": "A", "confidence": "high"}', "wrong schema"),
        ('{"verdict": "A"} {"verdict": "D"}', "not offered"),
        ('{"verdict": "A", "confidence": 0.2}', "out of range"),
        ('{"verdict": "A", "verdict": "B"}', "several verdicts"),
        ('{"verdict": "A", "winner": "B"}', "several verdicts"),
    ],
)
def test_json_without_a_verdict_says_why(said: str, why: str) -> None:
    assert reason(JsonParser(PairReply).parse(said)) == why


def test_json_of_other_schemas() -> None:
    assert JsonParser(ArenaReply).parse('{"verdict": "B >> A"}') == PairVerdict("b", 2)
    ratings = JsonParser(rating_reply(1, 10))
    assert ratings.parse('{"rating": 7.5}') == Rating(7.5)
    assert [reason(ratings.parse(f'{{"rating": {said}}}')) for said in ("11", '"8"', "true", "null", "1e999")] == [
        "out of range", "wrong schema", "wrong schema", "wrong schema", "out of range",
    ]  # fmt: skip
    assert JsonParser(RankingReply, num_responses=3).parse('{"ranking": ["B", "A=C"]}') == Ranking(((1,), (0, 2)))

    class Own(BaseModel):
        winner: str

    own = JsonParser(Own, {"left": "a", "right": "b"})
    assert own.parse('{"winner": "Right"}') == B and own.parse('{"verdict": "left"}') == A
    assert reason(own.parse('{"winner": "both"}')) == "not offered"
    with pytest.raises(ConfigError, match="expected one of verdict, winner, rating, ranking"):
        JsonParser(create_without_verdict())


def create_without_verdict() -> type[BaseModel]:
    class Nothing(BaseModel):
        reasoning: str

    return Nothing


def test_the_schema_for_an_endpoint_requires_all_and_allows_no_more() -> None:
    found = JsonParser(PairReply).json_schema()
    assert found["required"] == ["reasoning", "verdict", "confidence"] and found["additionalProperties"] is False
    assert found["properties"]["verdict"]["enum"] == ["A", "B", "tie"]


# log-odds


def test_log_odds_sum_over_the_spellings_of_a_label() -> None:
    """P(A) = .3 + .2 + .1, P(B) = .2: the log-odds are log 3; .2 is on no label."""
    probabilities = {"A": 0.3, " A": 0.2, "ĠA": 0.1, "▁B": 0.2, "The": 0.1}
    found = logit_of_labels({token: math.log(p) for token, p in probabilities.items()}, {"A": "a", "B": "b"})
    assert isinstance(found, LabelLogits)
    assert found.logit == pytest.approx(math.log(3)) and found.missing_mass == pytest.approx(0.2) and not found.censored
    assert found.probability == pytest.approx(0.75)


def test_log_odds_with_a_tie() -> None:
    found = logit_of_labels({token: math.log(p) for token, p in {"A": 0.2, "B": 0.2, "C": 0.6}.items()}, {"A": "a", "B": "b", "C": "tie"})
    assert isinstance(found, LabelLogits)
    assert found.logit == pytest.approx(0) and found.probability == pytest.approx(0.5) and found.tie == pytest.approx(math.log(0.6))


def test_a_label_that_is_not_listed_bounds_the_log_odds() -> None:
    """B is at most as likely as the last token listed (.1), and has at most what is left (.05): the log-odds are at least log(.85 / .05)."""
    found = logit_of_labels({"A": math.log(0.85), "The": math.log(0.1), "x": -9999.0}, {"A": "a", "B": "b"})
    assert isinstance(found, LabelLogits) and found.censored
    assert found.logit == pytest.approx(math.log(0.85 / 0.05)) and found.missing_mass == pytest.approx(0.15)
    mirrored = logit_of_labels({"B": math.log(0.85), "The": math.log(0.1)}, {"A": "a", "B": "b"})
    assert isinstance(mirrored, LabelLogits) and mirrored.logit == pytest.approx(-found.logit)


@pytest.mark.parametrize("listed", [{"A": 0.0, "B": -9999.0}, {"A": 0.0}, {"A": 5e-5, "x": -9999.0}])
def test_a_judge_that_is_sure_is_not_undecided(listed: dict[str, float]) -> None:
    """All of the probability on A, nothing left for B: at least log(1 / 1e-4), what rounding may hide, and no tie."""
    found = logit_of_labels(listed, {"A": "a", "B": "b"})
    assert isinstance(found, LabelLogits) and found.censored and found.logit == pytest.approx(math.log(1e4), abs=1e-3) and found.probability > 0.999


def test_without_a_label_there_are_no_log_odds() -> None:
    assert reason(logit_of_labels({"The": -0.1, "a": -2.0}, {"A": "a", "B": "b"})) == "no verdict"
    assert reason(logit_of_labels({}, {"A": "a", "B": "b"})) == "no verdict"
    with pytest.raises(DataError, match="pass natural logarithms"):
        logit_of_labels({"A": 0.7}, {"A": "a", "B": "b"})
    with pytest.raises(DataError, match="expected both"):
        logit_of_labels({"A": -0.7}, {"A": "a"})


@given(st.floats(-20, 20), st.floats(-20, 20))
def test_two_orders_give_back_quality_and_position(delta: float, position: float) -> None:
    found = average_orders(delta + position, delta - position)
    assert found.delta == pytest.approx(delta, abs=1e-9) and found.position == pytest.approx(position, abs=1e-9)


def test_the_mean_is_taken_of_log_odds() -> None:
    """A judge with delta 2 and position bias 3: the mean of probabilities is 0.631, though P(a is better) is 0.881."""
    first, second = 2 + 3, 2 - 3
    p = 1 / (1 + math.exp(-average_orders(first, second).delta))
    assert p == pytest.approx(0.8808, abs=1e-4)
    assert (1 / (1 + math.exp(-first)) + 1 / (1 + math.exp(-second))) / 2 == pytest.approx(0.6311, abs=1e-4)
    with pytest.raises(DataError, match="two finite numbers"):
        average_orders(1.0, math.nan)


# both orders


@pytest.mark.parametrize(
    ("first", "second", "policy", "winner", "outcome", "probability"),
    [
        (A, A, "drop", "a", "agreed", 1.0),
        (B, B, "tie", "b", "agreed", 0.0),
        (TIE, TIE, "drop", "tie", "both tie", 0.5),
        (A, B, "drop", None, "contradiction", None),
        (A, B, "tie", "tie", "contradiction", 0.5),
        (A, B, "keep_mean", "tie", "contradiction", 0.5),
        (TIE, B, "drop", None, "one tie", None),
        (TIE, B, "tie", "tie", "one tie", 0.5),
        (TIE, B, "keep_mean", "b", "one tie", 0.25),
        (PairVerdict("a", 0, 0.9), PairVerdict("b", 0, 0.9), "keep_mean", "tie", "contradiction", 0.5),
        (PairVerdict("a", 0, 0.9), PairVerdict("b", 0, 0.6), "keep_mean", "a", "contradiction", 0.7101020514),  # odds 9 and 2/3: sqrt(6) to 1
        (PairVerdict("a", 0, 0.8), PairVerdict("a", 0, 0.8), "drop", "a", "agreed", 0.8),
    ],
)
def test_what_two_orders_say_together(first, second, policy, winner, outcome, probability) -> None:
    found = combine_orders(first, second, policy)
    assert (found.winner, found.reason) == (winner, outcome)
    assert found.probability == (None if probability is None else pytest.approx(probability))
    assert found.contradiction == (outcome == "contradiction")


def test_strength_is_the_mean_of_orders_that_agree() -> None:
    assert combine_orders(PairVerdict("a", 2), PairVerdict("a", 1)).strength == 1.5
    with pytest.raises(ConfigError, match="expected one of drop, tie, keep_mean"):
        combine_orders(A, B, "first")  # type: ignore[arg-type]


VERDICTS = st.builds(PairVerdict, st.sampled_from(["a", "b"]), st.sampled_from([0, 1, 2]), st.none() | st.floats(0.5, 1)) | st.just(TIE)
FAILURES = st.builds(ParseFailure, st.sampled_from(REASONS))
POLICIES = st.sampled_from(["drop", "tie", "keep_mean"])


@given(st.sampled_from(["x", "y", "tie"]), st.booleans(), POLICIES, st.sampled_from(["labels", "steps", "json", "letter"]))
def test_the_text_that_wins_is_the_one_the_judge_named(preferred: str, x_first: bool, policy, form: str) -> None:
    """The judge sees texts x and y in both orders and names the one it prefers by where it stands: that text wins, under every policy."""
    texts = ("x", "y") if x_first else ("y", "x")

    def reply(shown: tuple[str, str]) -> str:
        where = "tie" if preferred == "tie" else "AB"[shown.index(preferred)]
        if form == "json":
            return json.dumps({"verdict": where})
        if form == "letter":
            return where
        if form == "steps":
            return {"A": "[[A>>B]]", "B": "[[B>A]]", "tie": "[[A=B]]"}[where]
        return {"A": "[[A]]", "B": "[[B]]", "tie": "[[C]]"}[where]

    parser = {"labels": THREE, "steps": ArenaParser(), "json": JsonParser(PairReply), "letter": ExactParser({"A": "a", "B": "b", "tie": "tie"})}[form]
    first, second = parser.parse(reply(texts)), parser.parse(reply(texts[::-1]))
    assert not isinstance(first, (Rating, Ranking)) and not isinstance(second, (Rating, Ranking))
    found = combine_orders(first, swapped(second), policy)
    assert not found.contradiction
    chosen = "tie" if found.winner == "tie" else {"a": texts[0], "b": texts[1]}.get(found.winner or "")
    assert chosen == preferred


@given(VERDICTS | FAILURES, VERDICTS | FAILURES, POLICIES)
def test_combining_is_symmetric_and_failures_never_decide(first, second, policy) -> None:
    found = combine_orders(first, second, policy)
    assert found == combine_orders(second, first, policy)
    mirrored = combine_orders(swapped(first), swapped(second), policy)
    assert mirrored.winner == {"a": "b", "b": "a", "tie": "tie", None: None}[found.winner]
    if isinstance(first, ParseFailure) or isinstance(second, ParseFailure):
        assert found.winner is None and found.probability is None
    elif policy != "keep_mean":
        assert found.winner in (None, "tie") or first.winner == second.winner == found.winner


@given(st.text(alphabet='[]AB=>C* `\n<think/>{}":verdict\\一', max_size=80), st.sampled_from([None, "stop", "length"]))
def test_no_reply_breaks_a_parser(text: str, finish_reason: str | None) -> None:
    for parser in (THREE, ArenaParser("all_agree"), RatingParser(1, 10), RankingParser(2), JsonParser(PairReply), ExactParser({"A": "a", "B": "b"})):
        parsed = parser.parse(text, finish_reason, "f")
        if finish_reason == "length" and not isinstance(parser, ExactParser):
            assert reason(parsed) == "cut off"
