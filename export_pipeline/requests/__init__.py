"""The life of a request: validation, queue, ownership and transitions, and what is recorded about it.

Every write to ``export_requests`` and its companions is here, except the rows that ``recurring/`` makes.
"""
