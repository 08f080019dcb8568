"""Alembic's scripts: one file a revision, frozen once released. Run by ``requests.migrate``."""
