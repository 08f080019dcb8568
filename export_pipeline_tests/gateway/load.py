"""``python -m export_pipeline_tests.gateway.load``: creates and status reads a second of one gateway process."""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.home import free_port
from export_pipeline.requests.api_keys import create_key
from export_pipeline.settings import Settings
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.servers.postgres import serve_postgres

ASKED = json.dumps({"dataset": "contacts", "format": "csv", "filters": {"country": "Brasil"}})
Request = tuple[str, str, str | None]


@contextmanager
def running_gateway(directory: Path, environment: Mapping[str, str]) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """One real process; gives its port and itself. It is asked to stop in the end, and must."""
    port = free_port()
    command = [sys.executable, "-c", "from export_pipeline.cli import main; main()", "gateway", "--port", str(port)]
    with (directory / "gateway.log").open("wb") as log:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    try:
        _wait_until_ready(port, process)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _wait_until_ready(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
                connection.request("GET", "/readyz")
                if connection.getresponse().read() == b'{"status":"ok"}':
                    return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError("the gateway did not start; see gateway.log")


def measure(port: int, key: str, request: Request, *, callers: int, seconds: float) -> list[float]:
    """Seconds of each request that was answered with 2xx, by so many callers at once, each on one connection."""
    ends_at = time.monotonic() + seconds
    taken: list[list[float]] = [[] for _ in range(callers)]
    failed: list[int] = []

    def call(mine: list[float]) -> None:
        method, path, body = request
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            while time.monotonic() < ends_at:
                began = time.perf_counter()
                connection.request(method, path, body, {"Authorization": f"Bearer {key}"})
                answer = connection.getresponse()
                answer.read()
                mine.append(time.perf_counter() - began)
                if not 200 <= answer.status < 300:
                    failed.append(answer.status)
                    return

    threads = [threading.Thread(target=call, args=[mine]) for mine in taken]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise RuntimeError(f"answered {failed[0]}")
    return [one for mine in taken for one in mine]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--callers", type=int, default=8)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as name,
        serve_postgres() as server,
        server.fresh_database() as url,
    ):
        directory = Path(name)
        load_demo_data(url, contacts=1000, entities=10)
        engine = create_engine(Settings(database_url=url).database_url)
        upgrade(engine)
        with engine.begin() as connection:
            key = create_key(connection, ORGANIZATIONS[0].id, ["contacts:export"]).secret
        environment = {
            "EXPORT_DATABASE_URL": url,
            "EXPORT_STORE_URL": (directory / "store").as_uri(),
            "EXPORT_STAGING_URL": (directory / "staging").as_uri(),
            "EXPORT_MAIL_URL": (directory / "outbox").as_uri(),
            "EXPORT_RATE_LIMIT_PER_MINUTE": "10000000",
        }
        with running_gateway(directory, environment) as (port, _):
            _report(port, key, arguments.callers, arguments.seconds)


def _report(port: int, key: str, callers: int, seconds: float) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/v1/exports", ASKED, {"Authorization": f"Bearer {key}"})
        uid = json.loads(connection.getresponse().read())["uid"]
    creates: Request = ("POST", "/v1/exports", ASKED)
    reads: Request = ("GET", f"/v1/exports/{uid}", None)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"One gateway process, PostgreSQL, {callers} callers, {machine}")
    print(f"{'':14}{'a second':>10}{'p50 ms':>10}{'p99 ms':>10}")
    for label, request in (("creates", creates), ("status reads", reads)):
        measure(port, key, request, callers=2, seconds=1)
        taken = measure(port, key, request, callers=callers, seconds=seconds)
        cuts = statistics.quantiles(taken, n=100)
        print(f"{label:14}{len(taken) / seconds:>10.0f}{cuts[49] * 1000:>10.1f}{cuts[98] * 1000:>10.1f}")


if __name__ == "__main__":
    main()
