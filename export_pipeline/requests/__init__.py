"""The life of a request: validation, queue, ownership and transitions, and what is recorded about it.

Every write to the tables of the contract is here; producing, sending and running an export is elsewhere.
"""
