"""CI's audit of dependencies, with the real pip-audit against a database of vulnerabilities on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "audit"
CANARY = ("jinja2", "2.4.1")


def advisory(name: str) -> dict[str, Any]:
    affected = {"package": {"name": name, "ecosystem": "PyPI"}, "versions": [], "ranges": []}
    return {"id": f"TEST-{name}", "summary": "Made up.", "details": "", "affected": [affected]}


@contextmanager
def serve_advisories(vulnerable: set[str], *, knows_canary: bool = True) -> Iterator[str]:
    """An OSV API that knows of vulnerabilities in these packages; gives its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name, version = asked["package"]["name"], asked["version"]
            hit = name in vulnerable or (knows_canary and (name, version) == CANARY)
            body = json.dumps({"vulns": [advisory(name)]} if hit else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def audit(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--osv-url", url]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("vulnerable", "code", "told"),
    [
        (set(), 0, " packages, 0 vulnerabilities, 0 ignored."),
        ({"boto3"}, 1, " packages, 1 vulnerabilities, 0 ignored."),
    ],
)
def test_a_known_vulnerability_fails_the_audit(vulnerable: set[str], code: int, told: str) -> None:
    with serve_advisories(vulnerable) as url:
        done = audit(url)
    assert (done.returncode, told in done.stdout) == (code, True), done.stdout + done.stderr
    assert all(f"TEST-{name}" in done.stdout for name in vulnerable)


def test_a_database_that_does_not_answer_or_knows_nothing_is_said_plainly_and_fails_nothing() -> None:
    with serve_advisories({"boto3"}, knows_canary=False) as url:
        knows_nothing = audit(url)
    for done in (knows_nothing, audit(url)):
        assert (done.returncode, "NOT POSSIBLE" in done.stdout) == (0, True), done.stdout + done.stderr
