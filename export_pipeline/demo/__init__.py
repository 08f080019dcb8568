"""A demo of the product: an application's tables and data, and the servers that it needs.

An installation replaces all of it by its own, so no other package imports this one.
"""
