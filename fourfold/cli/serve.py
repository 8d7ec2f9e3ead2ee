"""`fourfold serve cheap/`: an artefact behind HTTP."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli._print import AsJson, Trust, emit


def register(app: typer.Typer) -> None:
    app.command("serve", epilog="Example: fourfold serve cheap/ --port 8080 --workers 2 --cache 256MiB --deadline 50ms")(serve)


def serve(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that `fourfold optimize --out` wrote.")],
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    workers: Annotated[int, typer.Option(help="Processes that compute, each with the artefact's own threads.")] = 2,
    cache: Annotated[str, typer.Option(help="Memory for answers that were given already: 256MiB, 0 for none.")] = "256MiB",
    deadline: Annotated[str, typer.Option(help="Time in which a row should be answered; batches are gathered within it.")] = "50ms",
    timeout: Annotated[str, typer.Option(help="Time after which a request is given up (status 504).")] = "30s",
    max_body: Annotated[str, typer.Option(help="Largest body of a request (status 413).")] = "1MiB",
    max_inputs: Annotated[int, typer.Option(help="Most inputs of one request (status 413).")] = 256,
    queue: Annotated[int, typer.Option(help="Most rows that wait while all workers are at work (status 503).")] = 2048,
    drain: Annotated[str, typer.Option(help="Time that requests get to finish when the server ends.")] = "30s",
    keep: Annotated[str, typer.Option(help="Time that the artefact of before stays warm after a swap, as the way back.")] = "30s",
    no_batching: Annotated[bool, typer.Option("--no-batching", help="Each row in a call of its own, to compare.")] = False,
    site: Annotated[str | None, typer.Option(help="Where the machine stands, for grams of CO2e: tokyo, FR, gcp:us-central1 …")] = None,
    ledger: Annotated[Path | None, typer.Option(help="File that the saving is booked in when the server ends.")] = None,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="A line on stderr for every request, not only for those that fail.")] = False,
    write: Annotated[Path | None, typer.Option(metavar="DIR", help="Write a Dockerfile and a systemd unit into DIR, and serve nothing.")] = None,
    trust: Trust = None,
    as_json: AsJson = False,
) -> int:
    """Serve a cheaper model over HTTP: /predict, /docs, /metrics, /ready. SIGTERM drains, SIGHUP reads FOLDER anew.

    The log is a JSON object a line on stderr; with --json the status lines on stdout are objects too. FOURFOLD_SERVE_TOKEN in the environment opens
    /admin/swap and /admin/rollback to who sends it.
    """
    from fourfold.jobs import serve as job
    from fourfold.runtime.serve.limits import ServingLimits, bytes_of, seconds_of
    from fourfold.runtime.serve.server import ServingOptions

    limits = ServingLimits(bytes_of(max_body, "--max-body"), max_inputs, queue, seconds_of(deadline, "--deadline"), seconds_of(timeout, "--timeout"),
                           drain=seconds_of(drain, "--drain"))
    options = ServingOptions(folder, host, port, workers, bytes_of(cache, "--cache"), not no_batching, tuple(trust or ()), site, log_requests,
                             seconds_of(keep, "--keep"), os.environ.get("FOURFOLD_SERVE_TOKEN", ""), limits)
    if write is not None:
        words = ["--workers", str(workers), "--cache", cache, "--deadline", deadline, "--timeout", timeout, "--max-body", max_body,
                 "--max-inputs", str(max_inputs), "--queue", str(queue), "--drain", drain, "--keep", keep, *(["--site", site] if site else []),
                 *[word for package in trust or () for word in ("--trust", package)]]
        made = job.write(options, write, words)
        if as_json:
            emit({"written": [str(path) for path in made]})
        else:
            print(f"Wrote {' and '.join(map(str, made))}.")
        return 0

    def told(event: str, /, **facts: object) -> None:
        if as_json:
            print(json.dumps({"event": event, **facts}, ensure_ascii=False, default=str), flush=True)
        elif (line := _line(event, facts)):
            print(line, flush=True)

    job.serve(options, ledger=ledger, told=told)
    return 0


def _line(event: str, facts: dict[str, object]) -> str:
    """An event in words; "" for those that only the log has."""
    if event == "ready":
        return f"Serving {facts['name']} at {facts['url']} (description: {facts['url']}/docs). Ctrl-C drains and ends."
    if event == "draining":
        return f"Ending: {facts['inflight']} requests are still being answered."
    if event == "ended":
        grams = f", {facts['gco2e']:.3g} gCO2e" if isinstance(facts["gco2e"], float) else ""
        return f"Ended: {facts['rows']:,} rows, {facts['cached']:,} of them known already; {facts['joules']:,} J{grams} in all."
    if event == "worker_died":
        return f"Worker {facts['worker']} is gone: {facts['why']}. Another is started."
    if event in ("swapped", "rolled_back"):
        return f"Serving {facts['artefact']} ({facts['digest']}) now."
    return f"Not swapped: {facts['why']}" if event == "swap_refused" else ""
