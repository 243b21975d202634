"""Models by name: loaded, warmed up, swapped while requests run, and drained at the end."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from palate.errors import ConfigError, ModelError
from palate.scoring.local import LocalScorer
from palate.scoring.sources import open_scorer
from palate.serving.metrics import Metrics
from palate.serving.routes import Refusal
from palate.serving.settings import ServerSettings
from palate.serving.worker import Front, Served, Worker

SERVED = "only checkpoints with a reward head are served (and averages of them); no endpoints, ensembles, bounds, implicit rewards or input formats"


class Hosted(NamedTuple):
    """A model that answers, and where it came from."""

    name: str
    source: str
    scorer: LocalScorer
    worker: Worker
    loaded: int  # seconds since 1970


class Loading(NamedTuple):
    """How checkpoints are loaded; from safetensors alone and without their own code, unless asked."""

    options: Mapping[str, Any] = {}  # of load_scorer: packing, token_budget, max_length, device, dtype
    allow_pickle: bool = False
    trust_remote_code: bool = False

    def open(self, source: str) -> Served:
        """Raises ModelError or ConfigError for what cannot be served."""
        folder = Path(source)
        if ":" in source and not folder.is_dir() and not source.startswith("average:"):
            raise ConfigError(f"{source}: {SERVED}")
        if not self.allow_pickle and (folder / "adapter_config.json").is_file() and not (folder / "adapter_model.safetensors").is_file():
            raise ModelError(f"{source}: its adapter is no safetensors file; pass --allow-pickle to load it all the same")
        safe: dict[str, Any] = {} if self.allow_pickle else {"use_safetensors": True}
        opened = open_scorer(source, trust_remote_code=self.trust_remote_code, **self.options, **safe)
        front = None if opened.scorer is opened.local else opened.scorer
        if opened.local is None or not isinstance(front, Front | None):
            raise ConfigError(f"{source}: {SERVED}")
        return Served(opened.local, front)


class Models:
    """The models of one server. Reading is for any thread; loading is one at a time."""

    def __init__(self, settings: ServerSettings, metrics: Metrics, loading: Loading | None = None):
        self.settings, self.metrics, self.loading = settings, metrics, loading or Loading()
        self._hosted: dict[str, Hosted] = {}
        self._loading = threading.Lock()

    def add(self, name: str, source: str, served: Served, loaded: int = 0) -> Hosted:
        """Warm a model up, then let it answer; one of the same name finishes what it has and goes."""
        worker = Worker(name, served, self.settings, self.metrics)
        worker.start()
        old = self._hosted.get(name)
        hosted = Hosted(name, source, served.scorer, worker, loaded)
        self._hosted = {**self._hosted, name: hosted}  # whole at once: a request sees the old one or the new one
        self.metrics.watch_queue(name, lambda: worker.items, lambda: worker.tokens)
        if old is not None:
            old.worker.close()
        return hosted

    def load(self, name: str, source: str, loaded: int = 0) -> Hosted:
        """From a folder or hub id, as the operator names it."""
        with self._loading:
            return self.add(name, source, self.loading.open(source), loaded)

    def load_requested(self, name: str, source: str, loaded: int) -> Hosted:
        """As a client names it: only from folders under the roots. Raises Refusal."""
        if not self._loading.acquire(blocking=False):
            raise Refusal(409, "busy", "another model is being loaded; ask again", retry_after=5)
        try:
            return self.add(name, source, self.loading.open(self._inside(source)), loaded)
        except (ModelError, ConfigError) as error:
            raise Refusal(400, "not_loaded", f"{name}: {error}; the models that answered before still do") from error
        finally:
            self._loading.release()

    def _inside(self, source: str) -> str:
        """The folder that a client named, and the base of an adapter in it, if they lie under the roots."""
        folder = self._under_a_root(source)
        adapter = folder / "adapter_config.json"
        if adapter.is_file():
            try:
                self._under_a_root(str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]))
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise Refusal(403, "not_allowed", "the adapter's base cannot be told") from error
        return str(folder)

    def _under_a_root(self, source: str) -> Path:
        try:
            folder = Path(source).resolve()
            inside = folder.is_dir() and any(folder.is_relative_to(root.resolve()) for root in self.settings.model_roots)
        except (OSError, ValueError, RuntimeError):  # names with null bytes, loops of links
            inside = False
        if not inside:  # one answer for what is absent and what is elsewhere: neither is a client's to find out
            raise Refusal(403, "not_allowed", "models are loaded only from folders under those that the server was started with (--model-root)")
        return folder

    def get(self, name: str | None) -> Hosted:
        """The model of this name; the first one where none is named. Raises Refusal."""
        hosted = self._hosted
        if name is None:
            return next(iter(hosted.values()))
        if name not in hosted:
            raise Refusal(404, "no_such_model", f"no model is called {name!r:.100}; there are {', '.join(hosted)}")
        return hosted[name]

    def first_unless(self, name: str | None) -> Hosted:
        """The same where clients send any name: an unknown one means the first model."""
        return self._hosted[name] if name in self._hosted else self.get(None)

    def all(self) -> Sequence[Hosted]:
        return list(self._hosted.values())

    def close(self) -> None:
        for hosted in self.all():
            hosted.worker.close()
