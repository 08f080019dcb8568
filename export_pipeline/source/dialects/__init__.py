"""SQL that differs between databases, one module a database.

No other module asks which database it speaks to.
"""
