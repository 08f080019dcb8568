"""Parse the filters of requests and segments into one condition tree. No SQL is built here: ``source`` compiles it."""
