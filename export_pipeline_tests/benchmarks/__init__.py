"""The benchmark: our whole path and the tools that people would use instead, in turn, on the same rows.

What belongs here: the data, what is run, how it is measured, and the report. What does not: the
pipeline itself, and anything that it needs to run.
"""
