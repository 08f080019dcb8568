"""Reading the exported data: the query, its compilation to SQL, and lookups.

``build_query`` is the one place that puts the tenant predicate into a statement.
"""
