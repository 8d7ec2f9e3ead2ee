"""The ASGI application: routes over an artefact that may change, answers from memory or from batches, and every refusal as JSON with a status.

Statuses: 400 no JSON · 401 no token · 404 · 405 · 408 body too slow · 409 a swap that was refused · 413 too large · 415 other content · 422 not what
the model reads · 500 the model raised · 502 the worker died with this row in its hands · 503 queue full while all work, or ending · 504 no answer in
time.
"""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

import msgspec

from fourfold.errors import FourfoldError
from fourfold.runtime.serve import openapi
from fourfold.runtime.serve.batching import RowAnswer, WaitingRow
from fourfold.runtime.serve.energy import EnergyAccount
from fourfold.runtime.serve.exchange import ArtefactExchange, beside
from fourfold.runtime.serve.limits import ServingLimits
from fourfold.runtime.serve.metrics import ServingMetrics
from fourfold.runtime.serve.requests import PredictRequest, RequestRefused, generate_request, predict_request, swap_request
from fourfold.runtime.serve.responses import ResponseDesk
from fourfold.runtime.serve.served_artefact import Overloaded, ServedArtefact
from fourfold.runtime.serve.supervision import BatchDeclined, WorkerDied
from fourfold.runtime.serve.wire import GenerationJob, TextPiece

Scope = Mapping[str, object]
Event = dict[str, object]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

_encode = msgspec.json.Encoder().encode
_JSON, _TEXT, _HTML = b"application/json", b"text/plain; version=0.0.4; charset=utf-8", b"text/html; charset=utf-8"
_QUIET = ((b"x-content-type-options", b"nosniff"),)


class Gone(Exception):
    """The client went away before its body had come."""


class ServingApp:
    """ASGI 3 over an exchange of artefacts. `draining`: nothing new is answered. `count` rows and `spent` CPU seconds so far, for the ledger."""

    def __init__(self, exchange: ArtefactExchange, limits: ServingLimits, desk: ResponseDesk, metrics: ServingMetrics, energy: EnergyAccount,
                 token: str = "") -> None:
        self.exchange, self.limits, self.desk, self.metrics, self.energy, self._token = exchange, limits, desk, metrics, energy, token
        self.draining = False
        self.answered = self.inflight = 0
        self.spent = self.alone = 0.0                                  # CPU seconds: as computed; as one call a row, without memory, would have taken
        metrics.watch("waiting_rows", "Rows in queues.", lambda: float(exchange.serving.waiting))
        metrics.watch("free_workers", "Workers without a batch.", lambda: float(len(exchange.serving.free)))
        metrics.watch("inflight_requests", "Requests that are being answered.", lambda: float(self.inflight))
        for name in ("hits", "misses", "joined"):
            metrics.watch(f"cache_{name}", f"Rows that were {name} in the response cache.", lambda name=name: float(getattr(desk, name)))
        metrics.watch("cache_saved_cpu_seconds", "CPU seconds that known answers did not cost again.", lambda: desk.saved)
        metrics.watch("joules_total", "Joules of the server, idle power included, as the meter has them.", lambda: energy.totals.joules)
        metrics.watch("co2e_grams_total", "Grams of CO2e of these joules (NaN without a site).",
                      lambda: math.nan if energy.totals.grams is None else energy.totals.grams)
        metrics.watch("joules_per_cpu_second", "Joules of work per CPU second, last window.", lambda: energy.totals.per_cpu)
        self._routes: dict[str, tuple[str, Callable[[Scope, Receive, Send], Awaitable[int]]]] = {
            "/predict": ("POST", self._predict), "/generate": ("POST", self._generate), "/health": ("GET", self._health),
            "/ready": ("GET", self._ready), "/model": ("GET", self._model), "/metrics": ("GET", self._metrics),
            "/openapi.json": ("GET", self._openapi), "/docs": ("GET", self._docs), "/": ("GET", self._docs)}
        if token:
            self._routes |= {"/admin/swap": ("POST", self._swap), "/admin/rollback": ("POST", self._rollback)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        path = str(scope["path"])
        known = self._routes.get(path)
        self.inflight += 1
        status = 500
        try:
            if known is None:
                raise RequestRefused(404, "not_found", "There is nothing at this path.", "See /docs.")
            method, answer = known
            if scope["method"] != method and not (method == "GET" and scope["method"] == "HEAD"):
                raise RequestRefused(405, "method", f"{path} wants {method}.", "See /docs.")
            status = await answer(scope, receive, send)
        except RequestRefused as refused:
            status = await self._refuse(send, refused)
        except Gone:
            status = 499
        finally:
            self.inflight -= 1
            self.metrics.request(path if known is not None else "other", status, time.perf_counter() - began)

    # ---- the work ----------------------------------------------------------------------------------------------------------------------------

    async def _predict(self, scope: Scope, receive: Receive, send: Send) -> int:
        began = time.monotonic()
        body = await self._body(scope, receive)
        self._open()
        artefact = self.exchange.serving
        about = artefact.about
        assert about is not None
        asked = predict_request(body, about.reads, about.kind, self.limits)
        try:
            async with asyncio.timeout(self.limits.timeout):
                answers = [one if isinstance(one, RowAnswer) else await one for one in self._asked(artefact, asked, began)]
        except TimeoutError:
            raise RequestRefused(504, "timeout", f"There was no answer within {self.limits.timeout:g} s.", "Send fewer or shorter inputs.") from None
        except WorkerDied as died:
            raise RequestRefused(502, "worker_died", str(died), "Send the request again; another worker answers.") from None
        except BatchDeclined as found:
            raise RequestRefused(500, "model_error", f"The model could not answer: {found}.", "Look into the server's log.") from None
        return await self._send(send, 200, _encode(self._told(artefact, asked, answers)), _JSON)

    def _asked(self, artefact: ServedArtefact, asked: PredictRequest, now: float) -> list[RowAnswer | asyncio.Future[RowAnswer]]:
        """Each row's answer where it is known, or who will bring it; all rows are queued before any is waited for."""
        loop = asyncio.get_running_loop()
        digest = bytes.fromhex(artefact.identity.digest)
        found: list[RowAnswer | asyncio.Future[RowAnswer]] = []
        new: list[WaitingRow] = []
        for row in asked.rows:
            key = self.desk.key(digest, row)
            if (known := self.desk.known(key)) is not None:
                found.append(known)
                continue
            waiter: asyncio.Future[RowAnswer] = loop.create_future()
            found.append(waiter)
            if (flying := self.desk.flying(key)) is not None:
                flying.waiters.append(waiter)
                continue
            fresh = WaitingRow(row, key, now, now + self.limits.deadline, [waiter], self.desk.settled)
            self.desk.begin(fresh)
            new.append(fresh)
        if new:
            try:
                artefact.admit(len(new))
            except Overloaded as full:
                error = RequestRefused(503, "overloaded", f"All workers are at work. {full}", "Try again later.", max(1.0, full.after))
                for row in new:                                        # others may have joined these rows within this very call only
                    self.desk.settled(row, None)
                for one in found:
                    if isinstance(one, asyncio.Future):
                        one.cancel()
                raise error from None
            for row in new:
                artefact.submit(row)
        return found

    def _told(self, artefact: ServedArtefact, asked: PredictRequest, answers: list[RowAnswer]) -> dict[str, object]:
        about = artefact.about
        assert about is not None
        cpu = sum(one.cpu for one in answers)
        self._count(artefact, answers, cpu)
        joules, grams = self.energy.charge(cpu)
        told: dict[str, object] = {"predictions": [one.said for one in answers]}
        for wanted, name, of in ((asked.scores, "scores", _same), (asked.probabilities, "probabilities", _softmax)):
            if wanted:
                told[name] = [None if one.record is None else _named(of(one.record), about.classes, about.kind) for one in answers]
        errors = {str(at): one.error for at, one in enumerate(answers) if one.error}
        if errors:
            told["errors"] = errors
        told["model"] = artefact.identity.digest[:12]
        told["usage"] = {"cpu_seconds": cpu, "joules": joules, "gco2e": grams, "cached": sum(one.cached for one in answers)}
        return told

    def _count(self, artefact: ServedArtefact, answers: list[RowAnswer], cpu: float) -> None:
        about = artefact.about
        assert about is not None
        self.answered += len(answers)
        self.spent += cpu
        self.alone += sum(sum(one.single for one in about.members[: answer.member + 1]) for answer in answers)
        for member in {answer.member for answer in answers}:
            count = sum(answer.member == member and not answer.cached for answer in answers)
            if count:
                self.metrics.rows.labels(about.members[min(member, len(about.members) - 1)].name).inc(count)
        if cached := sum(answer.cached for answer in answers):
            self.metrics.rows.labels("cache").inc(cached)

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> int:
        body = await self._body(scope, receive)
        self._open()
        artefact = self.exchange.serving
        if artefact.about is None or not artefact.about.generates:
            raise RequestRefused(404, "writes_nothing", "The artefact that is served writes no texts.", "Ask /predict.")
        asked = generate_request(body, self.limits)
        job = GenerationJob(0, asked.prompt, asked.max_new_tokens, asked.temperature, asked.top_k, asked.top_p, asked.seed)
        pieces: asyncio.Queue[TextPiece | Exception] = asyncio.Queue()
        work = asyncio.ensure_future(self._written(artefact, job, pieces))
        try:
            async with asyncio.timeout(self.limits.timeout * (10 if asked.stream else 1)):
                return await (self._streamed(send, pieces) if asked.stream else self._joined(send, pieces))
        except TimeoutError:
            raise RequestRefused(504, "timeout", "The text was not finished in time.", "Ask for fewer tokens, or stream.") from None
        finally:
            work.cancel()

    async def _written(self, artefact: ServedArtefact, job: GenerationJob, pieces: asyncio.Queue[TextPiece | Exception]) -> None:
        try:
            await artefact.write(job, pieces.put_nowait)
        except Exception as error:
            pieces.put_nowait(error)

    async def _joined(self, send: Send, pieces: asyncio.Queue[TextPiece | Exception]) -> int:
        text = ""
        while True:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                raise _refusal(piece)
            text += piece.text
            if piece.end:
                return await self._send(send, 200, _encode({"text": text, **self._finished(piece)}), _JSON)

    def _finished(self, piece: TextPiece) -> dict[str, object]:
        joules, grams = self.energy.charge(piece.cpu)
        self.spent += piece.cpu
        return {"usage": {"cpu_seconds": piece.cpu, "joules": joules, "gco2e": grams}}

    async def _streamed(self, send: Send, pieces: asyncio.Queue[TextPiece | Exception]) -> int:
        """Server-sent events: {"text"} a piece, then {"usage"} as event "end"; event "error" where the worker dies amid the text."""
        first = await pieces.get()
        if isinstance(first, Exception):
            raise _refusal(first)
        head = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), *_QUIET]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        piece: TextPiece | Exception = first
        while True:
            if isinstance(piece, Exception):
                refused = _refusal(piece)
                await self._event(send, b"event: error\n", refused.to_json(), True)
                return refused.status
            if piece.text:
                await self._event(send, b"", {"text": piece.text}, False)
            if piece.end:
                await self._event(send, b"event: end\n", self._finished(piece), True)
                return 200
            piece = await pieces.get()

    async def _event(self, send: Send, head: bytes, data: object, last: bool) -> None:
        await send({"type": "http.response.body", "body": head + b"data: " + _encode(data) + b"\n\n", "more_body": not last})

    # ---- pages -------------------------------------------------------------------------------------------------------------------------------

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._send(send, 200, b'{"status":"alive"}', _JSON)

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> int:
        able = sum(worker.ready is not None and worker.alive for worker in self.exchange.serving.workers)
        status = 200 if able and not self.draining else 503
        said = "ending" if self.draining else "ready" if able else "no worker"
        return await self._send(send, status, _encode({"status": said, "workers": able}), _JSON)

    async def _model(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._send(send, 200, _encode(self.described()), _JSON)

    def described(self) -> dict[str, object]:
        """What is served, as data."""
        artefact = self.exchange.serving
        about = artefact.about
        assert about is not None
        members = [{"name": one.name, "setting": one.setting, "batch": one.batch, "threads": one.threads} for one in about.members]
        return {"name": artefact.identity.name, "digest": artefact.identity.digest, "created": artefact.identity.created, "kind": about.kind,
                "reads": about.reads, "classes": about.classes, "generates": about.generates, "parameters": about.parameters, "members": members,
                "workers": [{"pid": worker.pid, "busy": worker.busy} for worker in artefact.workers], "warnings": about.warnings}

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._send(send, 200, self.metrics.text(), _TEXT)

    def _document(self) -> dict[str, object]:
        described = self.described()
        version = str(described["digest"])[:12]
        return openapi.document({**described, "version": version}, self.limits.rows, self.limits.body, self.limits.tokens, bool(self._token))

    async def _openapi(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._send(send, 200, _encode(self._document()), _JSON)

    async def _docs(self, scope: Scope, receive: Receive, send: Send) -> int:
        return await self._send(send, 200, openapi.page(self._document()).encode(), _HTML)

    # ---- administration ----------------------------------------------------------------------------------------------------------------------

    async def _swap(self, scope: Scope, receive: Receive, send: Send) -> int:
        self._allowed(scope)
        name = swap_request(await self._body(scope, receive))
        served = self.exchange.serving.identity.folder
        try:
            found = await self.exchange.swap(beside(served, name) if name else served)
        except FourfoldError as error:
            self.metrics.swaps.labels("refused").inc()
            raise RequestRefused(409, "not_swapped", error.message, error.mend) from None
        self.metrics.swaps.labels("swapped").inc()
        return await self._send(send, 200, _encode({"name": found.name, "digest": found.digest}), _JSON)

    async def _rollback(self, scope: Scope, receive: Receive, send: Send) -> int:
        self._allowed(scope)
        try:
            found = await self.exchange.rollback()
        except FourfoldError as error:
            raise RequestRefused(409, "no_way_back", error.message, error.mend) from None
        self.metrics.swaps.labels("rolled_back").inc()
        return await self._send(send, 200, _encode({"name": found.name, "digest": found.digest}), _JSON)

    def _allowed(self, scope: Scope) -> None:
        given = _header(scope, b"authorization")
        if not hmac.compare_digest(given, b"Bearer " + self._token.encode()):
            raise RequestRefused(401, "token", "The token is missing or wrong.", "Send: Authorization: Bearer TOKEN (FOURFOLD_SERVE_TOKEN).")

    # ---- below -------------------------------------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self.draining:
            raise RequestRefused(503, "ending", "The server is ending.", "Ask another one.", 1.0)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The body, at most as long as allowed, in time. Raises RequestRefused (408, 413, 415), Gone."""
        kind = _header(scope, b"content-type").split(b";")[0].strip().lower()
        if kind not in (b"", _JSON):
            raise RequestRefused(415, "not_json", "The content type is not application/json.", "Send JSON.")
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > self.limits.body:
            raise self._large()
        held, size, more = [], 0, True
        try:
            async with asyncio.timeout(self.limits.timeout):
                while more:
                    event = await receive()
                    if event["type"] == "http.disconnect":
                        raise Gone
                    part = cast(bytes, event.get("body", b""))
                    size += len(part)
                    if size > self.limits.body:
                        raise self._large()
                    held.append(part)
                    more = bool(event.get("more_body", False))
        except TimeoutError:
            raise RequestRefused(408, "slow", f"The body did not come within {self.limits.timeout:g} s.", "Send it at once.") from None
        return b"".join(held)

    def _large(self) -> RequestRefused:
        return RequestRefused(413, "too_large", f"The body is larger than {self.limits.body:,} bytes.", "Send several requests.")

    async def _refuse(self, send: Send, refused: RequestRefused) -> int:
        more = [(b"retry-after", str(math.ceil(refused.after)).encode())] if refused.after is not None else []
        if refused.status in (408, 413, 503):
            more.append((b"connection", b"close"))                     # what is left of the body is not read
        return await self._send(send, refused.status, _encode(refused.to_json()), _JSON, more)

    async def _send(self, send: Send, status: int, body: bytes, kind: bytes, more: list[tuple[bytes, bytes]] | None = None) -> int:
        head = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *_QUIET, *(more or ())]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})
        return status


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in cast("list[tuple[bytes, bytes]]", scope["headers"]) if key == name), b"")


def _refusal(error: Exception) -> RequestRefused:
    """What a failure of a worker is told as."""
    if isinstance(error, WorkerDied):
        return RequestRefused(502, "worker_died", f"The worker that wrote this text is gone: {error}.", "Send the request again.")
    if isinstance(error, Overloaded):
        return RequestRefused(503, "overloaded", f"All workers are at work. {error}", "Try again later.", max(1.0, error.after))
    return RequestRefused(500, "model_error", f"The model could not answer: {error}.", "Look into the server's log.")


def _same(record: list[float]) -> list[float]:
    return record


def _softmax(record: list[float]) -> list[float]:
    top = max(record)
    powers = [math.exp(one - top) for one in record]
    total = sum(powers)
    return [one / total for one in powers]


def _named(values: list[float], classes: list[str] | None, kind: str) -> object:
    """Values by class name; a list where classes have none; the one value of a regression."""
    if kind == "regression":
        return values[0]
    return dict(zip(classes, values, strict=True)) if classes and len(classes) == len(values) else values
