"""The demo's home: one directory with its database, objects, mails, logs and Dagster instance.

What belongs here: the directory and the environment of the processes that live on it.
What does not: starting them (``processes``).
"""

from __future__ import annotations

import secrets
import shutil
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import click

BUCKET = "exports"
PREFIX = "demo"
_MARKER = ".export-pipeline-demo"


@dataclass(frozen=True)
class Home:
    """The places of one demo, and the keys of its S3 server, made anew each time."""

    directory: Path
    access_key_id: str = field(default_factory=lambda: f"demo{secrets.token_hex(8)}")
    secret_access_key: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)

    @property
    def database(self) -> Path:
        """SQLite: the host application's tables and the request tables."""
        return self.directory / "demo.db"

    @property
    def database_url(self) -> str:
        """The database, as the settings want it."""
        return f"sqlite:///{self.database}"

    @property
    def objects(self) -> Path:
        """What the S3 server serves, one directory a bucket."""
        return self.directory / "s3"

    @property
    def outbox(self) -> Path:
        """One .eml file a mail."""
        return self.directory / "outbox"

    @property
    def logs(self) -> Path:
        """What the processes print."""
        return self.directory / "logs"

    @property
    def dagster_home(self) -> Path:
        """Dagster's instance."""
        return self.directory / "dagster"

    @property
    def workspace(self) -> Path:
        """Which code server the daemon and the UI talk to."""
        return self.dagster_home / "workspace.yaml"

    def create(self) -> None:
        """Make an empty home; what an earlier demo left there is removed.

        Raises:
            click.ClickException: the directory holds something that no demo made.
        """
        if self.directory.exists() and any(self.directory.iterdir()):
            if not (self.directory / _MARKER).exists():
                raise click.ClickException(
                    f"{self.directory} is not empty and not a demo's home; choose another --home"
                )
            shutil.rmtree(self.directory)
        for directory in (self.objects / BUCKET, self.outbox, self.logs, self.dagster_home):
            directory.mkdir(parents=True)
        (self.directory / _MARKER).touch()
        configuration = resources.files("export_pipeline.demo") / "dagster.yaml"
        (self.dagster_home / "dagster.yaml").write_text(configuration.read_text())

    def write_workspace(self, port: int) -> None:
        """Point the daemon and the UI at the code server."""
        self.workspace.write_text(
            "load_from:\n  - grpc_server:\n"
            f"      host: 127.0.0.1\n      port: {port}\n      location_name: export_pipeline\n"
        )

    def environment(self, endpoint: str) -> dict[str, str]:
        """The settings of every process of the demo."""
        return {
            "DAGSTER_HOME": str(self.dagster_home),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "EXPORT_DATABASE_URL": self.database_url,
            "EXPORT_STORE_URL": f"s3://{BUCKET}/{PREFIX}",
            "EXPORT_STAGING_URL": (self.directory / "staging").as_uri(),
            "EXPORT_S3_ENDPOINT_URL": endpoint,
            "EXPORT_MAIL_URL": self.outbox.as_uri(),
            "EXPORT_MAIL_FROM": "Export demo <exports@example.com>",
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
