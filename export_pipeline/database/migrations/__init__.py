"""Alembic migrations of the request database."""
