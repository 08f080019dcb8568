"""The HTTP gateway: it authenticates callers, inserts requests, reads their state, and opens download links.

It has no rules of its own and does not use Dagster: gateway and pipeline share only the database.
"""
