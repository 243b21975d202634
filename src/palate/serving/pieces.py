"""Pieces of requests to token ids, one by one where one is bad: framing as the imitated server has it, length policy, what is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from palate.data.tokenization import response_text
from palate.errors import PalateError
from palate.scoring.local import LocalScorer, describe_model
from palate.types import Exchange, TokenIds

Framing: TypeAlias = Literal["contract", "tokenizer", "bare"]
"""contract: BOS and EOS as in training; tokenizer: whole text with the special tokens that the tokenizer adds by itself; bare: with none."""

REFUSED = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What chat templates and tokenizers raise on messages of another shape than they expect (lone surrogates, null contents, tools of another form)."""


class Piece(NamedTuple):
    """One thing to score."""

    exchange: Exchange
    framing: Framing = "contract"
    every_token: bool = False  # outputs of all tokens, not only of those that make the reward
    uncertain: bool = False  # its uncertainty as well
    limit: int | None = None  # tokens that whole text is cut to, as its request asks
    cut: Literal["left", "right"] = "left"


class Problem(NamedTuple):
    """Why a piece has no reward. `kind` is the short name under which it is counted."""

    kind: str
    message: str


class Encoded(NamedTuple):
    ids: list[int]
    reads: tuple[int, ...] | None  # positions to read; None: the last token, or whatever an encoder pools
    steps: tuple[int, ...] | None  # of a model of step rewards: ends of its steps
    truncated: bool
    piece: Piece


class PieceEncoder:
    """Turns pieces into token ids by the rules of one model. Not safe for threads: tokenizers are not."""

    def __init__(self, scorer: LocalScorer, on_long: str, *, gated: bool = False):
        self.scorer, self.encoder, self.tokenizer = scorer, scorer.encoder, scorer.tokenizer
        self.cuts_prompts = scorer.cut_prompts or on_long == "truncate_prompt"
        self.limit = scorer.encoder.max_length
        self.gated = gated
        self.reads_every_token = bool(describe_model(scorer)["decoder"])
        self.num_ids = int(scorer.model.get_input_embeddings().num_embeddings)
        self.prefix = list(self.encoder.rules.prefix)
        framed, bare = (list(self.tokenizer("a", add_special_tokens=on)["input_ids"]) for on in (True, False))
        self.suffix = framed[len(self.prefix) + len(bare) :] if framed[: len(self.prefix)] == self.prefix else []  # what the tokenizer itself ends with

    def encode(self, pieces: Sequence[Piece]) -> list[Encoded | Problem]:
        try:
            return [self._fitted(piece, ids) for piece, ids in zip(pieces, self._ids(pieces), strict=True)]
        except REFUSED:  # PalateError among them
            return [self._alone(piece) for piece in pieces]

    def _alone(self, piece: Piece) -> Encoded | Problem:
        if not self.tokenizer.chat_template and any(not isinstance(part, str | TokenIds) for part in piece.exchange[:2]):
            return Problem("refused", "this model has no chat template: send prompt and response as texts, or whole text")
        try:
            return self._fitted(piece, self._ids([piece])[0])
        except PalateError as error:
            return Problem("refused", str(error))
        except REFUSED as error:
            return Problem("refused", f"the template or tokenizer refuses it: {type(error).__name__}: {error}"[:300])

    def _ids(self, pieces: Sequence[Piece]) -> list[list[int]]:
        """Token ids at full length."""
        framed = iter(self.encoder.encode([p.exchange for p in pieces if p.framing == "contract"]))
        texts = [p.exchange.response for p in pieces if p.framing == "tokenizer"]
        whole = iter(self.tokenizer(texts)["input_ids"] if texts else [])
        texts = [p.exchange.response for p in pieces if p.framing == "bare"]
        bare = iter(self.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
        following = {"contract": framed, "tokenizer": (self._once(list(ids)) for ids in whole), "bare": bare}
        return [list(next(following[piece.framing])) for piece in pieces]

    def _once(self, ids: list[int]) -> list[int]:
        """BOS and EOS once, where a template had written into the text what the tokenizer adds again."""
        n, m = len(self.prefix), len(self.suffix)
        if n and ids[: 2 * n] == 2 * self.prefix:
            ids = ids[n:]
        return ids[:-m] if m and ids[-2 * m :] == 2 * self.suffix else ids

    def _fitted(self, piece: Piece, ids: list[int]) -> Encoded | Problem:
        if isinstance(piece.exchange.response, TokenIds) and not all(0 <= i < self.num_ids for i in ids):
            return Problem("refused", f"a token id is {next(i for i in ids if not 0 <= i < self.num_ids)!s:.40}; the model knows 0 to {self.num_ids - 1}")
        if not ids:
            return Problem("empty", "it is empty: it has no token to read a reward from")
        if piece.every_token and not self.reads_every_token:
            return Problem("refused", "rewards of tokens: this model is an encoder, which gives one reward for a whole text")
        if self.gated and (piece.every_token or piece.framing != "contract" or not piece.exchange.prompt or isinstance(piece.exchange.response, TokenIds)):
            return Problem("refused", "this model's gate reads the prompt: send messages, or prompt and response, and ask for no rewards of tokens")
        kept = self._cut(piece, ids)
        if kept is None:
            cut = " and its response alone does not fit" if self.cuts_prompts else "; shorten it, or start the server with --on-long truncate_prompt"
            return Problem("too_long", f"it has {len(ids)} tokens, the model takes {self.limit}{cut}")
        if not kept:
            return Problem("empty", f"nothing is left of it within {piece.limit} tokens")
        steps = self._steps(piece.exchange, len(ids) - len(kept)) if self.scorer.readout.aggregate else None
        if steps == ():
            return Problem("no_steps", "this model rewards the steps of a response, and none was found: send messages, or prompt and response")
        reads = tuple(range(len(kept))) if piece.every_token else steps
        return Encoded(kept, reads, steps, len(kept) < len(ids), piece)

    def _cut(self, piece: Piece, ids: list[int]) -> list[int] | None:
        """`ids` within what was asked for and what the model takes; None where the policy does not allow it."""
        whole = piece.framing != "contract" or isinstance(piece.exchange.response, TokenIds)
        if whole and piece.limit is not None and len(ids) > piece.limit:
            ids = self._shortened(ids, piece.limit, piece.cut)
        if self.limit is None or len(ids) <= self.limit:
            return ids
        if not self.cuts_prompts:
            return None
        if whole:  # nothing says where its prompt ends: its start goes
            return self._shortened(ids, self.limit, "left")
        return self.encoder.fit(ids, self.encoder.prompt_length(piece.exchange, ids))

    def _shortened(self, ids: list[int], limit: int, side: str) -> list[int]:
        """At most `limit` ids with BOS and EOS kept; the cut is at the start or at the end of what is between."""
        n = len(self.prefix) if self.prefix and ids[: len(self.prefix)] == self.prefix else 0
        m = len(self.suffix) if self.suffix and ids[-len(self.suffix) :] == self.suffix else 0
        body, room = ids[n : len(ids) - m], limit - n - m
        if room <= 0:
            return ids[:limit]
        return [*ids[:n], *(body[:room] if side == "right" else body[len(body) - room :]), *ids[len(ids) - m :]]

    def _steps(self, exchange: Exchange, cut: int) -> tuple[int, ...]:
        if isinstance(exchange.response, TokenIds):
            return ()
        steps = [step for step in response_text(exchange).split(self.scorer.readout.separator) if step.strip()]
        return tuple(end - cut for end in self.encoder.step_ends(exchange, steps))


def messages_exchange(messages: Sequence[Mapping[str, Any]], template_args: Mapping[str, Any] | None = None) -> Exchange:
    return Exchange(tuple(messages[:-1]), tuple(messages[-1:]), template_args or {})


def turn_exchange(scorer: LocalScorer, prompt: str, response: str) -> Exchange:
    """A question and its answer as one turn of chat where the model knows chats, else as plain text."""
    if not scorer.tokenizer.chat_template:
        return Exchange(prompt, response)
    return Exchange(({"role": "user", "content": prompt},), ({"role": "assistant", "content": response},))
