"""A server process: models loaded and warm, then listening; on SIGTERM no more is taken in, what is queued is answered, and it ends with exit code 0."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from palate.errors import ConfigError
from palate.serving.app import make_app
from palate.serving.hosting import Loading, Models
from palate.serving.metrics import Metrics
from palate.serving.settings import ServerSettings

logger = logging.getLogger(__name__)

SWITCH = 0.0005
"""Seconds after which Python threads take turns (Python's own: 0.005). The computing thread asks for the interpreter before every operation, and would
wait for a busy event loop so long each time."""

KEEP_ALIVE = 60  # seconds that an idle connection is kept; longer than the pauses of a training loop's client between batches of rollouts
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(sources: Mapping[str, str], settings: ServerSettings, loading: Loading) -> None:
    """Serve models (name -> folder or hub id) until SIGTERM or Ctrl-C. Raises ConfigError where the address cannot be used."""
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigError(f"serving needs {error.name}: pip install 'palate[serve]'") from error

    if settings.host not in LOOPBACK and settings.api_key is None:
        logger.warning("listening on %s without an API key: whoever reaches this port can use the model (set PALATE_API_KEY)", settings.host)
    metrics = Metrics()
    models = Models(settings, metrics, loading)
    for name, source in sources.items():
        hosted = models.load(name, source, int(time.time()))
        logger.info("%s: %s, %s rows", name, source, hosted.scorer.engine.packing)
    app = make_app(models, settings, metrics)
    sys.setswitchinterval(SWITCH)
    gc.collect()
    gc.freeze()  # the models' many objects are here to stay; looking them over at every collection would stop all requests
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(settings.timeout) + 1,
        server_header=False,
        proxy_headers=False,  # nothing here reads a client's address
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                logger.info("listening on http://%s:%d", settings.host, self.servers[0].sockets[0].getsockname()[1])

    signal.signal(signal.SIGTERM, _drained)
    try:
        Server(config).run()
    except SystemExit as error:  # uvicorn's way to say that it could not start; why, it has logged
        models.close()
        raise ConfigError(f"cannot listen on {settings.host}:{settings.port}, for the reason above; --port and --host choose another place") from error


def _drained(_number: int, _frame: object) -> None:
    """uvicorn drains on SIGTERM and then raises the signal again for whoever had it before: that is us, and the work is done."""
