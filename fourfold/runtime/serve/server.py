"""The server's process: its socket, its signals, and the order in which it begins and ends.

SIGTERM and SIGINT drain: nothing new is taken, what is there is answered, workers end. SIGHUP reads the artefact's folder anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from fourfold.errors import FourfoldError, InputError, MissingExtra
from fourfold.runtime.serve.energy import EnergyAccount, EnergyTotals
from fourfold.runtime.serve.exchange import ArtefactExchange
from fourfold.runtime.serve.limits import ServingLimits
from fourfold.runtime.serve.metrics import ServingLog, ServingMetrics
from fourfold.runtime.serve.responses import KnownAnswers, ResponseDesk, warmed
from fourfold.runtime.serve.served_artefact import ArtefactIdentity, ServedArtefact

if TYPE_CHECKING:
    import uvicorn

    from fourfold.runtime.serve.app import ServingApp


@dataclass(frozen=True)
class ServingOptions:
    """How an artefact is served. cache: bytes of remembered answers, 0 for none. batching: False answers each row in a call of its own. keep: seconds
    that the artefact of before stays warm after a swap. port 0: any free one."""

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 2
    cache: int = 256 << 20
    batching: bool = True
    trust: tuple[str, ...] = ()
    site: str | None = None
    log_requests: bool = False
    keep: float = 30.0
    token: str = ""
    limits: ServingLimits = field(default_factory=ServingLimits)


@dataclass(frozen=True)
class ServingOutcome:
    """What a server did until it ended: rows answered, their CPU seconds, the CPU seconds that one call a row without memory would have taken (by the
    workers' own trial), hits of the cache, energy."""

    identity: ArtefactIdentity
    rows: int
    cpu: float
    alone: float
    hits: int
    joined: int
    energy: EnergyTotals
    seconds: float


def listening(host: str, port: int) -> socket.socket:
    """A bound socket. Raises InputError where the port is taken, or not ours to take, or the address is not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
        found.listen(2048)                                             # bound alone, another server could still take the port
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"Port {port} of {host} is in use by another program.",
                             "Choose another: --port 8081, or --port 0 for a free one.") from None
        if error.errno == errno.EACCES:
            raise InputError(f"Port {port} needs rights that this user has not.", "Choose one from 1024 on: --port 8080.") from None
        raise InputError(f"Cannot listen on {host}, port {port}: {error.strerror or error}.",
                         "Give an address of this machine: --host 127.0.0.1.") from None
    except OverflowError:
        found.close()
        raise InputError(f"There is no port {port}.", "Choose one from 0 to 65535.") from None
    found.setblocking(False)
    return found


def checked() -> None:
    """Raises MissingExtra where what serves is not installed."""
    try:
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtra(f"Serving needs the package {error.name}.", "pip install 'fourfold[serve]'") from error


def run(options: ServingOptions, told: Callable[..., None], log: ServingLog | None = None, store: KnownAnswers | None = None) -> ServingOutcome:
    """Serve until SIGTERM or SIGINT. `told(event, **facts)` hears "loading", "ready", "draining", "ended" and what happens between.

    Raises InputError (port, options), ArtefactError (the artefact), MissingExtra.
    """
    checked()
    if options.workers < 1 or options.workers > 256:
        raise InputError(f"{options.workers} workers were asked for.", "Give 1 to 256: --workers 2.")
    if options.cache < 0:
        raise InputError("The cache has less than no bytes.", "Give a size, or 0 for none: --cache 256MiB.")
    found = listening(options.host, options.port)
    try:
        with asyncio.Runner() as runner:
            return runner.run(_serve(options, told, log or ServingLog(), store, found))
    finally:
        found.close()


async def _serve(options: ServingOptions, told: Callable[..., None], log: ServingLog, store: KnownAnswers | None,
                 bound: socket.socket) -> ServingOutcome:
    from fourfold.runtime.serve.app import ServingApp

    began = time.monotonic()
    metrics = ServingMetrics(log, options.log_requests)
    energy = EnergyAccount(options.site)

    def event(name: str, /, **facts: object) -> None:
        log(name, **facts)
        told(name, **facts)

    class Told:
        """Counts batches, tells of workers."""

        batch = staticmethod(metrics.batch)

        @staticmethod
        def worker(event: str, number: int, pid: int, why: str) -> None:
            metrics.worker(event, number, pid, why)
            told(event, worker=number, pid=pid, **({"why": why} if why else {}))

    def make(one: ArtefactIdentity) -> ServedArtefact:
        return ServedArtefact(one, options.trust, options.workers, options.limits, Told(), options.batching)

    exchange = ArtefactExchange(make, event, options.keep)
    event("loading", artefact=str(options.folder), workers=options.workers)
    await exchange.first(options.folder)
    if store is None and options.cache:
        store = await asyncio.to_thread(warmed, options.cache)         # before the first request, which would else wait for a compiler
    desk = ResponseDesk(store)
    app = ServingApp(exchange, options.limits, desk, metrics, energy, options.token)
    energy.start()
    host, port = bound.getsockname()[:2]
    server = _Uvicorn.of(app, options)
    signals = _Signals(server, app, exchange, options.folder, event)
    try:
        event("ready", url=f"http://{f'[{host}]' if ':' in str(host) else host}:{port}", pid=os.getpid(), seconds=round(time.monotonic() - began, 3),
              **{name: value for name, value in app.described().items() if name in ("name", "digest", "kind", "members")})
        with signals:
            await server.serve(sockets=[bound])
    finally:
        app.draining = True
        await exchange.close(options.limits.drain)
        totals = await asyncio.to_thread(energy.stop)
    outcome = ServingOutcome(exchange.serving.identity, app.answered, app.spent, app.alone, desk.hits, desk.joined, totals, time.monotonic() - began)
    event("ended", rows=outcome.rows, cpu_seconds=round(outcome.cpu, 3), joules=round(totals.joules, 3), gco2e=totals.grams, cached=outcome.hits,
          seconds=round(outcome.seconds, 3))
    return outcome


class _Signals:
    """What the process does when it is told something. The first SIGTERM or SIGINT drains, the second ends at once."""

    def __init__(self, server: uvicorn.Server, app: ServingApp, exchange: ArtefactExchange, folder: Path, told: Callable[..., None]) -> None:
        self.server, self.app, self.exchange, self.folder, self.told = server, app, exchange, folder, told
        self._swaps: set[asyncio.Task[None]] = set()

    def __enter__(self) -> _Signals:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._again)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            if hasattr(signal, name):
                loop.remove_signal_handler(getattr(signal, name))

    def _end(self, number: signal.Signals) -> None:
        if self.server.should_exit:
            self.server.force_exit = True
            return
        self.app.draining = True
        self.server.should_exit = True
        self.told("draining", signal=number.name, inflight=self.app.inflight)

    def _again(self) -> None:
        task = asyncio.ensure_future(self._swapped())
        self._swaps.add(task)
        task.add_done_callback(self._swaps.discard)

    async def _swapped(self) -> None:
        with contextlib.suppress(FourfoldError):                       # told already: the old artefact goes on
            await self.exchange.swap(self.folder)


class _Uvicorn:
    """uvicorn with our signals, and with connections that may not be silent for ever."""

    @staticmethod
    def of(app: ServingApp, options: ServingOptions) -> uvicorn.Server:
        import uvicorn

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:               # `_Signals` hears them; an exit code of 0 after a drain is ours to give
                yield

        limits = options.limits
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False, date_header=True,  # type: ignore[arg-type]
                                timeout_keep_alive=max(1, round(limits.idle)), timeout_graceful_shutdown=max(1, round(limits.drain)),
                                http=_bounded(limits.idle), backlog=2048)
        return Server(config)


def _bounded(idle: float) -> type[asyncio.Protocol]:
    """The HTTP protocol that uvicorn would choose, which also closes connections that send no whole head of a request for `idle` seconds."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Fastest
    except ImportError:
        from uvicorn.protocols.http.h11_impl import H11Protocol as Fastest

    class Bounded(Fastest):  # type: ignore[misc, valid-type]
        _patience: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._patience = self.loop.call_later(idle, self._silent)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waits = self.cycle is None or self.cycle.response_complete  # a head that has not come whole
            if not waits and self._patience is not None:
                self._patience.cancel()
                self._patience = None
            elif waits and self._patience is None:
                self._patience = self.loop.call_later(idle, self._silent)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._patience is not None:
                self._patience.cancel()
            super().connection_lost(exc)

        def _silent(self) -> None:
            self._patience = None
            if (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing():
                self.transport.close()

    return Bounded

