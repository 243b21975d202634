"""The log-odds of a verdict from the log-probabilities of one token: every spelling of a label counts, and what is missing is said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from palate.errors import DataError
from palate.judging.replies import ParseFailure
from palate.judging.verdicts import Winner

SPACE_MARKS = " \n\tĠ▁Ċ"
"""What tokenizers put before a word: blanks, and their signs in byte-level BPE (Ġ, Ċ) and SentencePiece (▁)."""

ROUNDING = 1e-4
"""Log-probabilities this little above 0 are 0: endpoints that compute in half precision round."""

UNLISTED = -9999.0
"""What OpenAI's API gives for a token outside the listed ones: no log-probability."""


class LabelLogits(NamedTuple):
    """Log-odds of A over B, the log-probability of each label over all its spellings, and the mass on tokens that are no label."""

    logit: float
    a: float
    b: float
    tie: float  # -inf where no tie is offered or listed
    missing_mass: float
    censored: bool  # one label is not among the listed tokens: it was given the largest probability it can have, so |logit| is a lower bound

    @property
    def probability(self) -> float:
        """P(a is better), a tie being half."""
        a, b, tie = np.exp(np.array([self.a, self.b, self.tie]) - max(self.a, self.b, self.tie))
        return float((a + tie / 2) / (a + b + tie))


def logit_of_labels(logprobs: Mapping[str, float], labels: Mapping[str, Winner]) -> LabelLogits | ParseFailure:
    """Log-probabilities of the likeliest tokens (natural logarithm) to the log-odds of the labels, {"A": "a", "B": "b"}.

    The ratio over the offered labels is AlpacaEval 2's (arXiv 2404.04475), with a sum over spellings ("A", " A", "ĠA"). With neither A nor B listed there is no
    verdict. With one of them, the other has at most the probability of the last token listed, and at most what is left of 1.
    Raises DataError for numbers that are no log-probabilities, and for labels without a and b.
    """
    if not {"a", "b"} <= set(labels.values()):
        raise DataError(f"the labels {dict(labels)} name no a or no b; expected both, {{'A': 'a', 'B': 'b'}}")
    for token, logprob in logprobs.items():
        if math.isnan(logprob) or logprob > ROUNDING:
            raise DataError(f"token {token!r} has the log-probability {logprob}, expected at most 0: pass natural logarithms, not probabilities or logits")
    spelled: dict[Winner, list[float]] = {"a": [], "b": [], "tie": []}
    for token, logprob in logprobs.items():
        label = token.strip(SPACE_MARKS)
        if label in labels and logprob > UNLISTED:
            spelled[labels[label]].append(logprob)
    a, b, tie = (_logsumexp(spelled[winner]) for winner in ("a", "b", "tie"))
    if a == b == -math.inf:
        return ParseFailure("no verdict", f"listed: {', '.join(map(repr, list(logprobs)[:8])) or 'nothing'}")
    missing = max(0.0, 1 - sum(math.exp(logprob) for logprob in (a, b, tie)))
    censored = -math.inf in (a, b)
    if censored:
        most = _most_unlisted(logprobs)
        a, b = max(a, most if a == -math.inf else a), max(b, most if b == -math.inf else b)
    return LabelLogits(a - b, a, b, tie, missing, censored)


def _logsumexp(values: list[float]) -> float:
    return float(np.logaddexp.reduce(values)) if values else -math.inf


def _most_unlisted(logprobs: Mapping[str, float]) -> float:
    """The largest log-probability that a token outside the list can have."""
    least = min(value for value in logprobs.values() if value > UNLISTED)
    left = 1 - sum(math.exp(value) for value in logprobs.values())
    return min(least, math.log(max(left, ROUNDING)))  # a judge that is sure has 1 on its label, and so much may have been rounded away
