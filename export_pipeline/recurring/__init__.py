"""Recurring exports: their rows, and the request that each fire time becomes.

When an export fires is computed in ``scheduling``.
"""
