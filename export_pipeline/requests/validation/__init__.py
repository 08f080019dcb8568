"""The rules of a request, checked before its run reads anything.

Nothing here reads the exported data.
"""
