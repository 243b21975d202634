"""Settings of a server: where it listens, how much it takes at once, what it does with what is too long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from palate.errors import ConfigError

ON_LONG = ("error", "truncate_prompt")


@dataclass(frozen=True)
class ServerSettings:
    """Sizes are bounds on what one client, or all of them together, can make this process hold."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    on_long: str = "error"  # beyond max_length: an error, or the start of the prompt is cut and the answer says so
    max_body: int = 16 * 2**20  # bytes of one request; about 1000 items of 4000 tokens
    max_items: int = 1024  # of one request; what TEI and Ray Data send at a time stays far below
    queue_items: int = 8192  # waiting or being computed, over all requests to one model
    queue_tokens: int = 1_000_000
    timeout: float = 120.0  # seconds; OpenRLHF's client waits 180, so it hears a 504 rather than nothing
    batch_tokens: int | None = None  # gathered before newcomers are looked at; None: a few rows' worth
    batch_items: int | None = None
    linger: float = 0.0  # seconds that an idle model waits for company to a first item
    may_load: bool = False  # POST /v1/models/load and /reload
    model_roots: tuple[Path, ...] = ()  # folders that those may read from

    def __post_init__(self) -> None:
        if self.on_long not in ON_LONG:
            raise ConfigError(f"on_long is {self.on_long!r}, expected one of {', '.join(ON_LONG)}")
        for name in ("max_body", "max_items", "queue_items", "queue_tokens", "timeout", "batch_tokens", "batch_items"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}, expected more than 0")
        if self.linger < 0:
            raise ConfigError(f"linger is {self.linger}, expected seconds, 0 or more")
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii()):
            raise ConfigError("the API key is empty or not ASCII; HTTP headers carry ASCII")
        if self.may_load and not self.model_roots:
            raise ConfigError("models may be loaded only from folders that were named: give --model-root as well")
        if self.model_roots and not self.may_load:
            raise ConfigError("--model-root names folders that models may be loaded from while the server runs; give --may-load to allow it")
