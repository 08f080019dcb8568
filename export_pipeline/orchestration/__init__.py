"""Dagster, and only here: ops, job, sensors, resources, run metadata.

What belongs here: thin shells that call the plain functions of the floors below.
What does not: any rule, any SQL, any byte of a file.
"""
