"""The HTTP APIs, one module a dialect."""
