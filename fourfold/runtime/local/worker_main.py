"""A worker: one device in a process of its own. Started by `pool` as `python -m fourfold.runtime.local.worker_main`; lives as long as that."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import sys
from multiprocessing.connection import Connection

from fourfold.errors import FourfoldError
from fourfold.runtime.local.malloc import keep
from fourfold.runtime.local.workers import EAGERLY, Arena, DeviceWorker, Duty, Inbox, Lost, Record, pack, unpack


def main(told: str) -> None:
    """`told`: descriptors of arena and link, and of the pipes from and to other devices."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)                        # Ctrl-C is the main process's; it ends us
    memory, link_fd, reads, writes = ast.literal_eval(told)
    link = Connection(link_fd)

    def orphaned() -> None:
        if link.poll(0):
            raise Lost

    try:
        _, duty, size = unpack(link.recv_bytes())
        keep()
        _pin(duty)
        arena = Arena(size, memory)
        inbox = Inbox(reads, orphaned, [link_fd])
        device = DeviceWorker(duty, arena, None, writes, inbox.wait)
        device.prepare()
        link.send_bytes(pack(("ready", None)))
        while True:
            _, record = unpack(link.recv_bytes())
            inbox.clear()
            link.send_bytes(pack(("done", _once(device, duty, arena, record))))
    except (Lost, EOFError, ConnectionResetError, BrokenPipeError):
        return
    except Exception as error:  # noqa: BLE001 — the main process says what it was
        text = error.message if isinstance(error, FourfoldError) else f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        mend = error.mend if isinstance(error, FourfoldError) else EAGERLY
        with contextlib.suppress(OSError):
            link.send_bytes(pack(("error", text, mend, isinstance(error, FourfoldError))))


def _once(device: DeviceWorker, duty: Duty, arena: Arena, wanted: bool) -> Record:
    import torch

    record = Record()
    with torch.inference_mode():
        given = {v: arena.tensor(slot) for v, slot in duty.given.items()}
        have = device.run(given, record if wanted else None)
        for v, slot in duty.returned.items():
            if slot.scalar:
                arena.tensor(slot).fill_(have[v])
            else:
                arena.tensor(slot).copy_(have[v])
    return record


def _pin(duty: Duty) -> None:
    import torch

    torch.set_num_threads(duty.threads)
    if duty.cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, duty.cores)


if __name__ == "__main__":
    _answer: object = main(sys.argv[1])
