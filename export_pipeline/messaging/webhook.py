"""Call the webhooks of organizations: what a call says, how it is signed, and which addresses it never reaches."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import ipaddress
import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import sqlalchemy as sa

from export_pipeline.failures import ExportFailure
from export_pipeline.requests import webhooks
from export_pipeline.requests.models import read_state
from export_pipeline.requests.validation.webhook import check_webhook_url, is_public
from export_pipeline.requests.webhooks import Webhook
from export_pipeline.settings import Settings

SIGNATURE_HEADER = "X-Export-Signature"
TIMEOUT_SECONDS = 10.0
"""For each wait for the receiver."""
LONGEST_CALL_SECONDS = 30.0
"""For the whole call (gu1, webhooks: an answer within 30 seconds)."""
_THREADS = 32
_AT_ONCE = 4
"""Simultaneous calls of one organization: its slow receiver must not occupy all threads."""
_LOOK_SECONDS = 1.0
"""The longest wait of a call that becomes due while others are under way."""
_LEASE = timedelta(seconds=LONGEST_CALL_SECONDS * 10)
"""Much longer than any call takes, so that no other process makes the same call meanwhile."""


@dataclass(frozen=True)
class Call:
    """The outcome of a call."""

    taken: bool
    answer: str
    """The status code, or what went wrong; never the receiver's text."""
    final: bool = False
    """Whether another try is useless."""


def deliver_due(database: sa.Engine, settings: Settings, *, seconds: float = math.inf) -> dict[str, int]:
    """Make every call that is due now, several at once; returns how many were delivered, and how many were not.

    No call begins after so many ``seconds``; the rest stays due.
    """
    counts = {"delivered": 0, "not_taken": 0}
    ends = time.monotonic() + seconds
    under_way: dict[Future[Call], str] = {}
    with ThreadPoolExecutor(_THREADS) as threads:
        while True:
            if time.monotonic() < ends and len(under_way) < _THREADS:
                room, busy = _THREADS - len(under_way), set(under_way.values())
                with database.begin() as connection:
                    taken = webhooks.take_due(connection, limit=room, lease=_LEASE, at_once=_AT_ONCE, busy=busy)
                for webhook in taken:
                    under_way[threads.submit(_deliver, database, settings, webhook)] = webhook.organization_id
            if not under_way:
                return counts
            for ended in wait(under_way, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                del under_way[ended]
                counts["delivered" if ended.result().taken else "not_taken"] += 1


def _deliver(database: sa.Engine, settings: Settings, webhook: Webhook) -> Call:
    try:
        call = _call(database, settings, webhook)
    except Exception as error:  # noqa: BLE001 - one broken call must not stop the others
        call = Call(taken=False, answer=f"failed: {type(error).__name__}")
    retry_seconds = None if call.final else settings.webhook_retry_seconds
    with database.begin() as connection:
        webhooks.record_result(connection, webhook, taken=call.taken, answer=call.answer, retry_seconds=retry_seconds)
    return call


def _call(database: sa.Engine, settings: Settings, webhook: Webhook) -> Call:
    with database.begin() as connection:
        body = payload(connection, webhook)
        if body is None:
            return Call(taken=False, answer="refused: the request is gone", final=True)
        secret = webhooks.secret_of(connection, webhook.organization_id)
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "export-pipeline",
        "X-Export-Event": webhook.event.value,
        "X-Export-Delivery": webhook.uid,
        SIGNATURE_HEADER: signature(secret, body, int(time.time())),
    }
    return post(webhook.url, body, headers, allow_insecure=settings.webhook_allow_insecure)


def payload(connection: sa.Connection, webhook: Webhook) -> bytes | None:
    """The body of a call: the export's state with the row's ``message``, without links and recipients.

    None if the request is gone.
    """
    state = read_state(connection, webhook.request_uid)
    if state is None:
        return None
    names = ("uid", "id", "organization_id", "dataset", "format", "status", "row_count", "byte_count", "file_count",
            "error_code", "message", "created_at", "completed_at", "expires_at")  # fmt: skip
    values = state.model_dump(mode="json", include=set(names))
    document = {
        "id": webhook.uid,
        "event": webhook.event.value,
        "timestamp": webhook.created_at.isoformat(),
        "export": {name: values[name] for name in names},
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def signature(secret: str, body: bytes, timestamp: int) -> str:
    """``t=…,v1=…``: HMAC-SHA256 (hex) of ``{t}.{body}``. The time is signed, so that receivers can refuse old calls."""
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


def post(url: str, body: bytes, headers: Mapping[str, str], *, allow_insecure: bool) -> Call:
    """Send one request; only the status of the answer matters."""
    try:
        check_webhook_url(url, allow_insecure=allow_insecure)
    except ExportFailure:
        return Call(taken=False, answer="refused: the URL may not be called", final=True)
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        address = _resolved(parts.hostname or "", port, allow_insecure=allow_insecure)
        if address is None:
            return Call(taken=False, answer="refused: the host's address is not public")
        connection = _PinnedConnection(parts.scheme, parts.hostname or "", port, address)
        return _exchange(connection, f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}", body, headers)
    except ssl.SSLCertVerificationError:
        return Call(taken=False, answer="no valid TLS certificate")
    except TimeoutError:
        return Call(taken=False, answer="no answer in time")
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        return Call(taken=False, answer=f"not reached: {type(error).__name__}")


def _resolved(host: str, port: int, *, allow_insecure: bool) -> str | None:
    """The first of the host's addresses; None if any of them is not public."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(info[4][0]).partition("%")[0] for info in found]
    if not allow_insecure and not all(is_public(ipaddress.ip_address(one)) for one in addresses):
        return None
    return addresses[0]


class _PinnedConnection(http.client.HTTPConnection):
    """Connects to the address that was checked: the name may resolve to another one a moment later."""

    def __init__(self, scheme: str, host: str, port: int, address: str) -> None:
        super().__init__(host, port, timeout=TIMEOUT_SECONDS)
        self._address = address
        self._tls = scheme == "https"
        if self._tls:
            self.default_port = http.client.HTTPS_PORT  # the Host header names any other port

    def connect(self) -> None:
        """Connect; with TLS the certificate must be the host's."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if not self._tls:
            return
        context = ssl.create_default_context()
        # Wrapped before the handshake, so that the watchdog finds the socket meanwhile.
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self.sock.do_handshake()


def _exchange(connection: http.client.HTTPConnection, target: str, body: bytes, headers: Mapping[str, str]) -> Call:
    # Without it, a receiver that sends a byte now and then would never time out.
    watchdog = threading.Timer(LONGEST_CALL_SECONDS, _cut, [connection])
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("POST", target, body, dict(headers))
        status = connection.getresponse().status
    finally:
        watchdog.cancel()
        connection.close()
    return Call(taken=200 <= status < 300, answer=str(status))


def _cut(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError):
        if connection.sock is not None:
            # The plain socket's method: that of TLS would drop the state that the reader uses.
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
