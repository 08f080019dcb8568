"""Dagster: ops, jobs, sensors, resources and run metadata, which call the plain functions of the lower layers.

No business rule, no SQL and no file format belongs here.
"""
