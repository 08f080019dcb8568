"""The rules of a request, which need its input and no row, and are checked before anything is read.

Nothing here reads the exported data.
"""
