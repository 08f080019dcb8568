"""Filters and segments as requests write them, parsed into one condition tree.

No SQL is made here; ``source`` compiles the tree.
"""
