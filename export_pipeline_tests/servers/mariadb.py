"""A real MariaDB for the tests, from the system's own package, on a free TCP port, with a data directory of its own.

What belongs here: starting it, databases in it, seeing that it ends. What does not: tables and rows.

There is no wheel of it: where ``mariadbd`` is not installed (``apt-get install mariadb-server``) the tests skip and
say so; ``.ci/run`` installs it.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pymysql
import pytest

_USER = "app"
_DIRECTORIES = ("/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/bin", "/usr/local/bin")
# As hostile as an application's database may be: comparisons ignore case, accents and trailing spaces.
_COLLATION = "utf8mb4_unicode_ci"


@dataclass(frozen=True)
class MariadbServer:
    """A running server."""

    host: str
    port: int
    password: str = field(repr=False)

    def url(self, database: str) -> str:
        """A database's URL, as the settings name it."""
        return f"mariadb+pymysql://{_USER}:{self.password}@{self.host}:{self.port}/{database}"

    @contextmanager
    def fresh_database(self) -> Iterator[str]:
        """The URL of a new, empty database, dropped afterwards."""
        name = f"t_{secrets.token_hex(6)}"
        self.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE {_COLLATION}")
        try:
            yield self.url(name)
        finally:
            self.execute(f"DROP DATABASE {name}")

    def execute(self, statement: str) -> None:
        """Run a statement of an administrator."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement)

    def connect(self) -> pymysql.Connection[pymysql.cursors.Cursor]:
        """A connection in autocommit, to no database."""
        return pymysql.connect(
            host=self.host, port=self.port, user=_USER, password=self.password, connect_timeout=5, autocommit=True
        )


@contextmanager
def serve_mariadb() -> Iterator[MariadbServer]:
    """Start a server in a temporary directory, end it with the block; skip the test where it is not installed."""
    daemon, install = _program("mariadbd"), _program("mariadb-install-db")
    if daemon is None or install is None:
        pytest.skip("mariadbd is not installed: apt-get install mariadb-server (.ci/run does)")
    root = Path(tempfile.mkdtemp(prefix="export-pipeline-mariadb-"))
    user = "nobody" if os.geteuid() == 0 else None
    try:
        root.chmod(0o755)
        data, password = root / "data", secrets.token_hex(16)
        data.mkdir(mode=0o700)
        if user is not None:
            shutil.chown(data, user)
        common = ["--no-defaults", f"--datadir={data}", *([f"--user={user}"] if user else [])]
        subprocess.run(
            [install, *common, "--skip-test-db", "--auth-root-authentication-method=normal"],
            cwd="/",
            check=True,
            capture_output=True,
        )
        accounts = data / "accounts.sql"
        accounts.write_text(
            f"CREATE USER {_USER}@'127.0.0.1' IDENTIFIED BY '{password}';\n"
            f"GRANT ALL ON *.* TO {_USER}@'127.0.0.1';\n"
            "DROP USER IF EXISTS root@localhost;\n"
        )
        if user is not None:
            shutil.chown(accounts, user)
        with _started(daemon, common, root, accounts) as port:
            server = MariadbServer("127.0.0.1", port, password)
            _wait(server)
            yield server
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _started(daemon: str, common: list[str], root: Path, accounts: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "bind-address": "127.0.0.1",
        "port": port,
        "socket": root / "data" / "socket",
        "init-file": accounts,
        "innodb-flush-log-at-trx-commit": 0,
        "innodb-buffer-pool-size": "32M",
        "innodb-log-file-size": "16M",
        "performance-schema": "OFF",
        "skip-log-bin": "",
        "skip-name-resolve": "",
        "character-set-server": "utf8mb4",
        "collation-server": _COLLATION,
    }
    arguments = [f"--{name}={value}" if value != "" else f"--{name}" for name, value in options.items()]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen([daemon, *common, *arguments], cwd="/", stdout=log, stderr=log)
        try:
            yield port
        finally:
            # SIGKILL: there is nothing to keep.
            process.kill()
            process.wait()


def _wait(server: MariadbServer) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            server.connect().close()
        except pymysql.err.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _program(name: str) -> str | None:
    """Servers lie in directories that are not on everybody's path."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *_DIRECTORIES]))
