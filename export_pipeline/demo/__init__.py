"""A host application to try the product on: its tables, its data, and the servers it needs.

What belongs here: everything that an installation replaces by its own. What does not: anything that
the product needs to run; no other floor imports this one.
"""
