"""The queue of one model and its two threads: requests of all clients are tokenized together, then computed together.

What waits when a batch is done is the next batch, up to a budget of tokens; nobody waits for a batch to fill (unless `linger` says so). It goes to the
packed engine whole, so responses to one prompt that arrive as requests of their own share its computation. Rewards are handed back row by row.

Tokenizing has a thread of its own: the model never waits for it, and the event loop answers others meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.linalg import cholesky

from palate.data.tokenization import common_prefix
from palate.scoring.gated import GatedScorer, gate_inputs
from palate.scoring.laplace import LaplaceScorer, factored_deviations
from palate.scoring.local import LocalScorer, aggregate_steps
from palate.scoring.uncertainty import HeadScorer, deviation_reader
from palate.serving.metrics import Metrics
from palate.serving.pieces import Encoded, Piece, PieceEncoder, Problem
from palate.serving.routes import Refusal
from palate.serving.settings import ServerSettings
from palate.types import Exchange

logger = logging.getLogger(__name__)

PIECES_PER_CALL = 256  # tokenized at a time, so that the model gets the first of many soon
GATHERED_ROWS = 4
"""Rows' worth of work gathered at a time: with one row's worth, the groups of 64 clients were cut apart."""

WARM_UP_TEXTS = 8  # as many as the engine checks its packing on

MOST_WAIT = 30  # seconds that a client is told to wait at most
SPEED_MEMORY = 0.9  # share of the old estimate of tokens a second that a new batch leaves

CLOSING = "closing"
"""The kind of refusal of a worker that goes down; where the model was swapped, its successor answers."""

FAILED = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError)
"""What computing a batch may raise (out of memory is a RuntimeError): its requests hear of it, and the thread lives on."""


Front: TypeAlias = GatedScorer | HeadScorer | LaplaceScorer
"""What may stand before a checkpoint: a gate, which makes the reward; or what states its uncertainty, which leaves the reward as it is."""


class Served(NamedTuple):
    """A model to be served."""

    scorer: LocalScorer
    front: Front | None = None


class Scored(NamedTuple):
    """A piece's reward and what it was read from."""

    reward: float
    outputs: list[float]  # of the head, where the reward was read (of a model of step rewards: none)
    steps: list[float] | None
    tokens: list[float] | None  # the reward read at every token, where asked for
    ids: list[int]
    truncated: bool
    uncertainty: float | None = None  # standard deviation in units of the reward, where asked for
    gate: list[float] | None = None  # what a gate weighed each output by


class Ticket:
    """The pieces of one request on their way, and the future that its client waits for."""

    __slots__ = ("future", "left", "pieces", "results", "withdrawn")

    def __init__(self, pieces: Sequence[Piece], future: asyncio.Future[list[Scored | Problem]]):
        self.pieces, self.future = pieces, future
        self.results: list[Scored | Problem] = [Problem("lost", "no answer")] * len(pieces)
        self.left = len(pieces)
        self.withdrawn = False


class Job(NamedTuple):
    ticket: Ticket
    place: int  # among the ticket's pieces
    encoded: Encoded
    work: int  # tokens that the job before it in the queue does not share with it


class Worker:
    """Scores pieces for an event loop. `start` it, `await score(...)`, and `close` it: what is queued is finished first."""

    def __init__(self, name: str, served: Served, settings: ServerSettings, metrics: Metrics):
        scorer = served.scorer
        self.name, self.scorer, self.settings, self.metrics = name, scorer, settings, metrics
        self.gate = served.front if isinstance(served.front, GatedScorer) else None
        self.deviations = _deviation_reader(served)
        self.encoder = PieceEncoder(scorer, settings.on_long, gated=self.gate is not None)
        self.batch_tokens = settings.batch_tokens or GATHERED_ROWS * scorer.tree_budget
        self.batch_items = settings.batch_items or settings.queue_items
        self.items = self.tokens = 0  # queued or being computed
        self.speed = 0.0  # tokens a second, of late
        self._intake: deque[Ticket] = deque()
        self._ready: deque[Job] = deque()
        self._lock = threading.Lock()
        self._arrived, self._encoded = threading.Condition(self._lock), threading.Condition(self._lock)
        self._last: list[int] = []  # sequence that was queued
        self._closing = self._all_encoded = False
        self._threads = [threading.Thread(target=run, name=f"{what}-{name}", daemon=True) for run, what in ((self._encode, "encode"), (self._score, "score"))]
        self._count = {key: getattr(metrics, key).labels(name) for key in ("items", "tokens", "truncated", "batch_fill", "batch_sequences")}

    # --- for the event loop ---

    def start(self) -> None:
        """Compute something small first, so that nobody's first request pays for it, then serve."""
        self.warm_up()
        for thread in self._threads:
            thread.start()

    def warm_up(self) -> None:
        texts = [Piece(Exchange("" if self.gate is None else "warm", "warm " * n)) for n in range(1, WARM_UP_TEXTS + 1)]
        encoded = [one for one in self.encoder.encode(texts) if isinstance(one, Encoded)]
        for _ in self._results(encoded):
            pass

    async def score(self, pieces: Sequence[Piece]) -> list[Scored | Problem]:
        """A result for each piece. Raises Refusal where the queue is full or the server goes down."""
        if not pieces:
            return []
        ticket = Ticket(pieces, asyncio.get_running_loop().create_future())
        with self._lock:
            if self._closing:
                raise Refusal(503, CLOSING, f"{self.name}: the model is going down; ask again", retry_after=1)
            if self.items + len(pieces) > self.settings.queue_items and self.items:
                raise self._full()
            self.items += len(pieces)
            self._intake.append(ticket)
            self._arrived.notify()
        try:
            return await ticket.future
        finally:
            ticket.withdrawn = True  # timed out, or its client left: what was not computed yet never is

    def close(self) -> None:
        """Finish what is queued, then end both threads. Blocks; nothing is taken in any more."""
        with self._lock:
            self._closing = True
            self._arrived.notify()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _full(self) -> Refusal:
        wait = math.ceil(self.tokens / self.speed) if self.speed else 1
        return Refusal(503, "overloaded", f"{self.items} items are queued; ask again later", retry_after=min(max(wait, 1), MOST_WAIT))

    # --- the encoding thread ---

    def _encode(self) -> None:
        while tickets := self._next_tickets():
            encoded = self.encoder.encode([piece for ticket in tickets for piece in ticket.pieces])
            self._queue(tickets, encoded, self._work(encoded))
        with self._lock:
            self._all_encoded = True
            self._encoded.notify()

    def _next_tickets(self) -> list[Ticket]:
        """Some requests that wait; none when the worker closes."""
        with self._lock:
            while not self._intake and not self._closing:
                self._arrived.wait()
            tickets: list[Ticket] = []
            while self._intake and (not tickets or sum(len(t.pieces) for t in tickets) + len(self._intake[0].pieces) <= PIECES_PER_CALL):
                tickets.append(self._intake.popleft())
            return tickets

    def _work(self, encoded: Sequence[Encoded | Problem]) -> list[int]:
        """Tokens of each that the sequence before it does not share; responses to one prompt mostly come one after the other."""
        if self.scorer.engine.packing != "shared":
            return [len(one.ids) if isinstance(one, Encoded) else 0 for one in encoded]
        work = []
        for one in encoded:
            ids = one.ids if isinstance(one, Encoded) else []
            work.append(len(ids) - common_prefix([self._last, ids]))
            self._last = ids or self._last
        return work

    def _queue(self, tickets: Sequence[Ticket], encoded: Sequence[Encoded | Problem], work: Sequence[int]) -> None:
        """Encoded pieces to the computing thread, problems back to their clients. A request that overfills the queue of tokens is refused whole."""
        ended: list[tuple[Ticket, Refusal | None]] = []
        at = 0
        with self._lock:
            for ticket in tickets:
                first, at = at, at + len(ticket.pieces)
                own = encoded[first:at]
                tokens = sum(len(one.ids) for one in own if isinstance(one, Encoded))
                if self.tokens and self.tokens + tokens > self.settings.queue_tokens:
                    self.items -= len(own)
                    ended.append((ticket, self._full()))
                    continue
                self.tokens += tokens
                for index, one in enumerate(own):
                    if isinstance(one, Problem):
                        ticket.results[index] = one
                        ticket.left -= 1
                        self.items -= 1
                    else:
                        self._ready.append(Job(ticket, index, one, work[first + index]))
                if not ticket.left:
                    ended.append((ticket, None))
            self._encoded.notify()
        _hand_back(ended)

    # --- the computing thread ---

    def _score(self) -> None:
        while jobs := self._gather():
            started = time.perf_counter()
            self._compute(jobs)
            speed = sum(len(job.encoded.ids) for job in jobs) / max(time.perf_counter() - started, 1e-9)
            self.speed = SPEED_MEMORY * self.speed + (1 - SPEED_MEMORY) * speed if self.speed else speed

    def _gather(self) -> list[Job]:
        """What waits, first come first served, up to the budget; none when the worker closes."""
        with self._lock:
            while True:
                idle = not self._ready
                while not self._ready and not self._all_encoded:
                    self._encoded.wait()
                if idle and self.settings.linger and not self._closing:
                    self._encoded.wait_for(lambda: self._closing or len(self._ready) >= self.batch_items, self.settings.linger)
                if not self._ready:
                    return []
                if jobs := self._take():
                    return jobs

    def _take(self) -> list[Job]:
        """The first jobs that fit the budget; those that nobody waits for any more are let go."""
        jobs: list[Job] = []
        work = 0
        while self._ready and len(jobs) < self.batch_items and (not jobs or work + self._ready[0].work <= self.batch_tokens):
            job = self._ready.popleft()
            if job.ticket.withdrawn:
                self._release(job)
                continue
            work += job.work if jobs else len(job.encoded.ids)  # a batch begins by itself
            jobs.append(job)
        return jobs

    def _release(self, job: Job) -> None:
        self.items -= 1
        self.tokens -= len(job.encoded.ids)

    def _compute(self, jobs: Sequence[Job]) -> None:
        """Rewards of a batch, handed back row by row. A batch that fails is computed again one by one, to find whose fault it is."""
        done: set[int] = set()
        try:
            for rows, found in self._results([job.encoded for job in jobs]):
                done.update(rows)
                self._deliver([(jobs[row], one) for row, one in zip(rows, found, strict=True)])
                if all(job.ticket.withdrawn for job in jobs):  # answered, or left
                    self._let_go([job for i, job in enumerate(jobs) if i not in done])
                    return
        except FAILED as error:
            left = [job for i, job in enumerate(jobs) if i not in done]
            logger.exception("%s: computing %d sequences failed", self.name, len(left))
            if len(left) == 1:
                self._deliver([(left[0], Problem("failed", f"the model failed on it: {type(error).__name__}: {error}"[:300]))])
                return
            for job in left:
                self._compute([job])

    def _let_go(self, jobs: Sequence[Job]) -> None:
        with self._lock:
            for job in jobs:
                self._release(job)

    def _results(self, encoded: Sequence[Encoded]) -> Iterator[tuple[list[int], list[Scored | Problem]]]:
        """(places in the batch, their results) row by row."""
        return self._gated(encoded) if self.gate else self._read(encoded)

    def _read(self, encoded: Sequence[Encoded]) -> Iterator[tuple[list[int], list[Scored | Problem]]]:
        for rows, values in self.scorer.read_ids([one.ids for one in encoded], _reads(encoded)):
            rewards = self.scorer.rewards_of(np.concatenate(list(values))).tolist()
            ends = list(accumulate(map(len, values), initial=0))
            spans = zip(rows.tolist(), values, pairwise(ends), strict=True)
            found = [self._one(encoded[row], rewards[start:end], outputs) for row, outputs, (start, end) in spans]
            yield rows.tolist(), self._with_uncertainty([encoded[row].piece.uncertain for row in rows], found)

    def _one(self, encoded: Encoded, read: list[float], outputs: np.ndarray) -> Scored | Problem:
        """`read`: the reward at each token read."""
        steps = None
        if encoded.steps is not None:
            steps = [read[at] for at in encoded.steps] if encoded.piece.every_token else read
            assert self.scorer.readout.aggregate is not None
            reward = aggregate_steps(np.array(steps, dtype=np.float32), self.scorer.readout.aggregate)
        else:
            reward = read[-1]
        if not math.isfinite(reward):
            return Problem("not_finite", f"the model gave {reward} in place of a reward")
        tokens = read if encoded.piece.every_token else None
        return Scored(float(reward), outputs[-1].tolist() if steps is None else [], steps, tokens, encoded.ids, encoded.truncated)

    def _with_uncertainty(self, asked: Sequence[bool], found: list[Scored | Problem]) -> list[Scored | Problem]:
        unsure = {i: one for i, one in enumerate(found) if asked[i] and isinstance(one, Scored)}
        if unsure and self.deviations is not None:
            for (i, one), deviation in zip(unsure.items(), self.deviations(list(unsure.values())).tolist(), strict=True):
                found[i] = one._replace(uncertainty=deviation)
        return found

    def _gated(self, encoded: Sequence[Encoded]) -> Iterator[tuple[list[int], list[Scored | Problem]]]:
        """All at once: a gate reads the prompts of a batch beside its sequences."""
        assert self.gate is not None
        on_long = "truncate_prompt" if self.encoder.cuts_prompts else "error"
        inputs = gate_inputs(self.scorer, [one.piece.exchange for one in encoded], on_long=on_long)
        rewards, weights = self.gate.weigh(inputs)
        found: list[Scored | Problem] = []
        for one, reward, outputs, shares in zip(encoded, rewards.tolist(), inputs.outputs.tolist(), weights.tolist(), strict=True):
            if math.isfinite(reward):
                found.append(Scored(reward, outputs, None, None, one.ids, one.truncated, gate=shares))
            else:
                found.append(Problem("not_finite", f"the model gave {reward} in place of a reward"))
        yield list(range(len(encoded))), found

    def _deliver(self, found: Sequence[tuple[Job, Scored | Problem]]) -> None:
        ended: list[tuple[Ticket, Refusal | None]] = []
        tokens = sum(len(job.encoded.ids) for job, _ in found)
        with self._lock:
            for job, result in found:
                self._release(job)
                job.ticket.results[job.place] = result
                job.ticket.left -= 1
                if not job.ticket.left:
                    ended.append((job.ticket, None))
        self._count["items"].inc(len(found))
        self._count["tokens"].inc(tokens)
        self._count["truncated"].inc(sum(job.encoded.truncated for job, _ in found))
        self._count["batch_fill"].observe(tokens / self.scorer.token_budget)
        self._count["batch_sequences"].observe(len(found))
        _hand_back(ended)  # after the counts: who has an answer finds it counted


def _deviation_reader(served: Served) -> Callable[[Sequence[Scored]], np.ndarray] | None:
    """How the uncertainties of scored pieces are found; None where the model states none."""
    scorer, front = served
    if isinstance(front, LaplaceScorer):
        factor, reference = cholesky(front.posterior.precision, lower=True), front.posterior.reference
        return lambda found: factored_deviations(factor, scorer.embed_ids([one.ids for one in found]).astype(np.float64) - reference)
    stated = deviation_reader(scorer.readout)
    return None if stated is None or isinstance(front, GatedScorer) else lambda found: stated(np.array([one.outputs for one in found], dtype=np.float64))


def _reads(encoded: Sequence[Encoded]) -> list[tuple[int, ...]] | None:
    """Positions to read of each, where any is read elsewhere than at its last token."""
    if all(one.reads is None for one in encoded):
        return None
    return [(len(one.ids) - 1,) if one.reads is None else one.reads for one in encoded]


def _hand_back(ended: Sequence[tuple[Ticket, Refusal | None]]) -> None:
    """Wake the clients whose requests are done: one call into each event loop."""
    loops = {ticket.future.get_loop() for ticket, _ in ended}
    for loop in loops:
        own = [(ticket, refusal) for ticket, refusal in ended if ticket.future.get_loop() is loop]
        try:
            loop.call_soon_threadsafe(_settle, own)
        except RuntimeError:  # the loop is closed: nobody waits any more
            logger.debug("answers to %d requests came after the server had gone", len(own))


def _settle(ended: Sequence[tuple[Ticket, Refusal | None]]) -> None:
    for ticket, refusal in ended:
        if not ticket.future.done():  # cancelled by a timeout
            if refusal is None:
                ticket.future.set_result(ticket.results)
            else:
                ticket.future.set_exception(refusal)
