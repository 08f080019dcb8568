"""The request database: its tables, their column types and migrations, and the engine that opens it.

It holds no rule about requests; those are in ``requests``.
"""
