"""Recurring exports: when they fire, what they cover, and that each fire time becomes one request."""
