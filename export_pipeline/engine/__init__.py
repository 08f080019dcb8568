"""From a planned request to finished files: query, snapshot reader, staging, formats, splitter.

What belongs here: everything about rows, columns and bytes.
What does not: Dagster, and any network but the source database and the staging store.
"""
