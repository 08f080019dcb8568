"""Random tokens that open something, and what is stored of them.

What belongs here: making and digesting. What does not: what a token opens (``api_keys``, ``sealed_links``).
"""

from __future__ import annotations

import hashlib
import secrets

_BYTES = 32


def new_token() -> str:
    """256 random bits, safe in a URL."""
    return secrets.token_urlsafe(_BYTES)


def digest_of(token: str) -> str:
    """What is stored of a token: its SHA-256, hex.

    One round and no salt are enough: nobody guesses 256 random bits, and a slow hash, which protects what people
    choose themselves, would cost every HTTP request a tenth of a second.
    """
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()
