"""Cron expressions, wall-clock arithmetic and export windows. Pure: no clock and no database is read here."""
