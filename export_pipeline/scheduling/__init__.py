"""Cron expressions, wall-clock arithmetic and export windows.

Pure functions; nothing here reads a clock or a database.
"""
