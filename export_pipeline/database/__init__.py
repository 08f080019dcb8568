"""The request database: its tables, their column types and migrations, and the engine that opens it.

The rules about requests are in ``requests``.
"""
