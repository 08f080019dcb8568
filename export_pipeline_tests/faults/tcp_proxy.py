"""A proxy before a real TCP server (PostgreSQL) that refuses, cuts, and loses answers.

What belongs here: passing on, breaking, and counting what passed. What does not: what is broken when (the tests).
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from export_pipeline_tests.faults.proxy import RESET


class TcpProxy:
    """Connections to a server, which can be refused, cut, and lose the answer to what was just sent.

    ``connections`` counts those that were asked for, ``cuts`` those that were broken.
    """

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[_Link] = set()
        self._down = False
        self._cut_at: int | None = None
        self._lose: tuple[bytes, bytes] | None = None
        self.connections = 0
        self.cuts = 0
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def through(self, url: str) -> str:
        """A database's URL by way of this proxy."""
        here = sa.make_url(url).set(host="127.0.0.1", port=self._listener.getsockname()[1])
        return here.render_as_string(hide_password=False)

    def down(self) -> None:
        """Reset every connection, and each new one at once."""
        self._down = True
        self.cut()

    def up(self) -> None:
        """Nothing goes wrong any more."""
        self._down, self._cut_at, self._lose = False, None, None

    def cut(self) -> None:
        """Reset every connection that is open."""
        with self._lock:
            links = list(self._open)
        for link in links:
            link.reset()

    def cut_after(self, received: int) -> None:
        """Reset the next connection over which the server sends more than so many bytes, there."""
        self._cut_at = received

    def lose_reply(self, to: bytes, after: bytes) -> None:
        """The server hears ``to`` once on a connection that said ``after`` before; its answer never arrives."""
        self._lose = (to, after)

    def close(self) -> None:
        """End it, and what goes through it."""
        self._down = True
        # Closing alone does not wake the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self.cut()

    def lose(self, sent: bytes, said: bytes) -> bool:
        """Whether the answer to what a client sends now is to be lost."""
        with self._lock:
            if self._lose is None or self._lose[0] not in sent or self._lose[1] not in said:
                return False
            self._lose = None
            return True

    def over(self, received: int) -> bool:
        """Whether a connection that received so many bytes is to be cut now."""
        with self._lock:
            if self._cut_at is None or received <= self._cut_at:
                return False
            self._cut_at = None
            return True

    def forget(self, link: _Link, *, cut: bool) -> None:
        """A connection ended."""
        with self._lock:
            self._open.discard(link)
            self.cuts += cut

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._down:
                _abort(client)
                self.cuts += 1
                continue
            link = _Link(self, client, socket.create_connection(self._upstream))
            with self._lock:
                self._open.add(link)
            link.start()


class _Link:
    """One client's connection and the proxy's own to the server."""

    def __init__(self, proxy: TcpProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._lock = threading.Lock()
        self._ended = False
        self._losing = False

    def start(self) -> None:
        for pump in (self._to_server, self._to_client):
            threading.Thread(target=pump, daemon=True).start()

    def reset(self) -> None:
        self._end(cut=True)

    def _to_server(self) -> None:
        said = b""
        with contextlib.suppress(OSError):
            while sent := self._client.recv(1 << 16):
                said += sent
                self._losing = self._losing or self._proxy.lose(sent, said)
                self._server.sendall(sent)
        self._end(cut=False)

    def _to_client(self) -> None:
        received, cut = 0, False
        with contextlib.suppress(OSError):
            while answer := self._server.recv(1 << 16):
                received += len(answer)
                cut = self._losing or self._proxy.over(received)
                if cut:
                    break
                self._client.sendall(answer)
        self._end(cut=cut)

    def _end(self, *, cut: bool) -> None:
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if cut:
            _abort(self._client)
        for one in (self._client, self._server):
            # Closing alone does not wake the thread that reads the other half.
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._proxy.forget(self, cut=cut)


def _abort(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    # A thread that reads it would keep it open past its close; this wakes the thread and sends nothing.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)
    connection.close()


@contextmanager
def tcp_proxy(url: str) -> Iterator[TcpProxy]:
    """A proxy before the server of a database URL."""
    parsed = sa.make_url(url)
    with contextlib.closing(TcpProxy(parsed.host or "127.0.0.1", parsed.port or 5432)) as proxy:
        yield proxy
