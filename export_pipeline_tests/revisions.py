"""A revision of the request database that comes after the newest, so that a migrated database is behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from alembic.config import Config

from export_pipeline.database import migrate

LATER = "9000"
_SCRIPT = 'revision, down_revision, branch_labels, depends_on = "{later}", "{head}", None, None\n'


def add_later_revision(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Let ``migrate`` know a revision after the newest; it changes nothing."""
    head, config_of = migrate.head_revision(), migrate._config
    scripts = Path(shutil.copytree(Path(migrate.__file__).parent / "migrations", directory / "migrations"))
    (scripts / "versions" / f"{LATER}_later.py").write_text(
        _SCRIPT.format(later=LATER, head=head) + "\n\ndef upgrade() -> None:\n    pass\n"
    )

    def config(*arguments: object) -> Config:
        made = config_of(*arguments)  # type: ignore[arg-type]
        made.set_main_option("script_location", str(scripts))
        return made

    monkeypatch.setattr(migrate, "_config", config)
