"""Chunks in a peer's memory, so that a process that died comes back without reading a disk (the idea of Gemini: checkpoints in the memory of peers).

    peer = PeerMemory(("10.0.0.2", 7001), key)                        # on one machine: memory for another's chunks
    Checkpointer(root, replica=Replica(("10.0.0.2", 7001), key))      # on the other: each save goes there too, each load asks there first

A chunk is asked for by its sha256 and checked by it, so a peer can be late or wrong and do no harm; one that is gone is done without. Both sides
prove that they know `key` (HMAC challenge of `multiprocessing.connection`); messages are JSON and raw bytes, nothing is unpickled.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from multiprocessing.connection import Client, Connection, Listener

from fourfold.errors import InputError
from fourfold.runtime.store import layout

Address = tuple[str, int] | str
_MOST = 1 << 30                                                        # bytes of a message


class PeerMemory:
    """Memory of this process for the chunks of others, at most `most` bytes: of each client the last `steps` saves. Raises InputError where the
    address cannot be listened at."""

    def __init__(self, address: Address = ("127.0.0.1", 0), key: bytes = b"", *, most: int = 8 << 30, steps: int = 2) -> None:
        _checked(key)
        try:
            self._listener = Listener(address, authkey=key)
        except OSError as error:
            raise InputError(f"{address} cannot be listened at: {error.strerror or error}.", "Give a free port of this machine, 0 for any.") from None
        found = self._listener.address
        self._address: Address = found if isinstance(found, str) else (str(found[0]), int(found[1]))
        self._most, self._steps, self._lock = most, steps, threading.Lock()
        self._chunks: dict[str, bytes] = {}
        self._settled: dict[str, list[set[str]]] = {}
        self._open = True
        threading.Thread(target=self._listen, name="fourfold-peer", daemon=True).start()

    @property
    def address(self) -> Address:
        return self._address

    @property
    def bytes(self) -> int:
        with self._lock:
            return sum(map(len, self._chunks.values()))

    def close(self) -> None:
        """Forget everything and listen no more."""
        self._open = False
        self._listener.close()
        with self._lock:
            self._chunks.clear()

    def _listen(self) -> None:
        while self._open:
            try:
                client = self._listener.accept()
            except Exception:                                          # a stranger without the key, or the end
                continue
            threading.Thread(target=self._serve, args=(client,), name="fourfold-peer-client", daemon=True).start()

    def _serve(self, client: Connection) -> None:
        with client:
            while self._open:
                try:
                    asked = json.loads(client.recv_bytes(1 << 26))
                    if asked["do"] == "put":
                        client.send_bytes(self._put(str(asked["name"]), client))
                    elif asked["do"] == "get":
                        with self._lock:
                            found = self._chunks.get(str(asked["name"]))
                        client.send_bytes(b"0" if found is None else b"1")
                        if found is not None:
                            client.send_bytes(found)
                    elif asked["do"] == "settle":
                        self._settle(str(asked["who"]), {str(name) for name in asked["names"]})
                        client.send_bytes(b"1")
                    else:
                        return
                except (EOFError, OSError, ValueError, KeyError, TypeError):
                    return

    def _put(self, name: str, client: Connection) -> bytes:
        with self._lock:
            known = name in self._chunks
        client.send_bytes(b"0" if known else b"1")                     # 1: send it
        if known:
            return b"1"
        data = client.recv_bytes(_MOST)
        with self._lock:
            if layout.digest(data) != name or len(data) + sum(map(len, self._chunks.values())) > self._most:
                return b"0"
            self._chunks[name] = data
        return b"1"

    def _settle(self, who: str, names: set[str]) -> None:
        with self._lock:
            self._settled[who] = [*self._settled.get(who, []), names][-self._steps :]
            needed = set().union(*(one for kept in self._settled.values() for one in kept))
            if len(self._settled) == 1 or not set(self._chunks) <= needed:
                self._chunks = {name: data for name, data in self._chunks.items() if name in needed}


class Replica:
    """A peer's memory as a save and a load see it. What cannot be reached is done without: `lost` says why."""

    def __init__(self, address: Address, key: bytes, *, who: str = "0") -> None:
        _checked(key)
        self.address, self._key, self.who = address, key, who
        self.lost = ""
        self._lock = threading.Lock()
        self._peer: Connection | None = None

    def put(self, name: str, data: bytes) -> None:
        """Keep a chunk there, where there is room."""
        with self._lock:
            try:
                peer = self._connected()
                if peer is None:
                    return
                peer.send_bytes(json.dumps({"do": "put", "name": name}).encode())
                if peer.recv_bytes(1) == b"1":
                    peer.send_bytes(data)
                peer.recv_bytes(1)
            except (EOFError, OSError) as error:
                self._gone(error)

    def get(self, name: str) -> bytes | None:
        """A chunk, as it was kept; None where it is not there. The caller checks its sha256."""
        with self._lock:
            try:
                peer = self._connected()
                if peer is None:
                    return None
                peer.send_bytes(json.dumps({"do": "get", "name": name}).encode())
                return peer.recv_bytes(_MOST) if peer.recv_bytes(1) == b"1" else None
            except (EOFError, OSError) as error:
                self._gone(error)
                return None

    def settle(self, names: Iterable[str]) -> None:
        """A save is committed: these chunks and those of the save before are to be kept, earlier ones may go."""
        with self._lock:
            try:
                peer = self._connected()
                if peer is not None:
                    peer.send_bytes(json.dumps({"do": "settle", "who": self.who, "names": list(names)}).encode())
                    peer.recv_bytes(1)
            except (EOFError, OSError) as error:
                self._gone(error)

    def close(self) -> None:
        with self._lock:
            if self._peer is not None:
                self._peer.close()
            self._peer = None

    def _connected(self) -> Connection | None:
        if self._peer is None and not self.lost:
            from multiprocessing import AuthenticationError

            try:
                self._peer = Client(self.address, authkey=self._key)
            except AuthenticationError:
                self.lost = "the peer has another key"
        return self._peer

    def _gone(self, error: Exception) -> None:
        self.lost = f"the peer at {self.address} is gone ({type(error).__name__})"
        self._peer = None


def _checked(key: bytes) -> None:
    if not isinstance(key, bytes) or len(key) < 16:
        raise InputError("A replica's key is a secret of 16 bytes or more.", "Make one by secrets.token_bytes(32) and give it to both sides.")
