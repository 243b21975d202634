"""A tiny model behind the app, in this process, with a client that speaks HTTP to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from fastapi.testclient import TestClient
from tests.conftest import TOKENIZERS, tiny_model

from palate.data.templates import prepare_tokenizer
from palate.models.checkpoints import RewardContract, RewardStatistics
from palate.models.reward_model import as_reward_model, fit_tokenizer
from palate.scoring.contract import build_contract
from palate.scoring.local import LocalScorer
from palate.serving.app import make_app
from palate.serving.hosting import Loading, Models
from palate.serving.metrics import Metrics
from palate.serving.settings import ServerSettings
from palate.serving.worker import Served
from palate.types import Readout

STATISTICS = RewardStatistics(mean=0.25, std=0.5, temperature=2.0, comparisons=10)


def tiny_scorer(
    kind: str = "llama", *, seed: int = 0, readout: Readout | None = None, statistics: RewardStatistics | None = None, **options: Any
) -> LocalScorer:
    """A scorer over a random model with a contract (no golden examples)."""
    tokenizer = prepare_tokenizer(TOKENIZERS[kind](), chat_template=options.pop("chat_template", None))
    outputs = readout.outputs if readout else ("reward",)
    model = as_reward_model(tiny_model(kind, seed=seed, num_labels=len(outputs)), outputs)
    fit_tokenizer(model, tokenizer)
    options = {"max_length": 256, **options}
    scorer = LocalScorer(model, tokenizer, **options)
    contract: RewardContract = build_contract(scorer.model, scorer.encoder, golden=[], readout=readout, rewards=statistics)
    return LocalScorer(model, tokenizer, contract=contract, **options)


class Serving(NamedTuple):
    client: TestClient
    scorer: LocalScorer
    models: Models
    metrics: Metrics

    def post(self, path: str, body: Any, **options: Any) -> Any:
        answer = self.client.post(path, json=body, **options)
        assert answer.status_code == 200, answer.text
        return answer.json()


Serve = Callable[..., Serving]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve scorers by name under settings; every app is drained at the end."""
    with ExitStack() as stack:

        def start(scorers: LocalScorer | Served | dict[str, LocalScorer], *, loading: Loading | None = None, **settings: Any) -> Serving:
            named = scorers if isinstance(scorers, dict) else {"tiny": scorers}
            given, metrics = ServerSettings(**settings), Metrics()
            models = Models(given, metrics, loading)
            for name, scorer in named.items():
                models.add(name, name, scorer if isinstance(scorer, Served) else Served(scorer))
            client = stack.enter_context(TestClient(make_app(models, given, metrics), raise_server_exceptions=False))
            return Serving(client, models.get(None).scorer, models, metrics)

        yield start


@pytest.fixture(scope="module")
def llama() -> LocalScorer:
    """BOS by the tokenizer and by the template as well; a pad token of its own."""
    return tiny_scorer("llama")
