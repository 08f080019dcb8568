"""The contract with other applications: tables, states and their transitions, preflight rules, ledger.

What belongs here: everything an application can see or ask for through SQL, and every write to those tables.
What does not: how an export is made (engine), sent (delivery) or run (orchestration).
"""
