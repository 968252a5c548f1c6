"""Keys: random, shown once, and kept only as a hash.

A key has 256 random bits, so its plain SHA-256 is enough to keep: there is nothing to guess that
a slow hash would protect, and the hash is looked up at every request.
"""

import hashlib
import secrets

PREFIX = "pm-"  # so that people and scanners of leaked secrets know one when they see it
LONGEST = 512  # characters of a key that are looked at


def new_key() -> str:
    """A new key, to be shown once."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_key(key: str) -> str:
    """SHA-256 of a key, in hexadecimal; the store knows no more of a key than this."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def bearer(authorization: str | None) -> str | None:
    """The key in an Authorization header, or None if there is none.

    Args:
        authorization: "Bearer KEY"; the word in any case (RFC 9110).
    """
    if authorization is None:
        return None
    scheme, _, key = authorization.partition(" ")
    key = key.strip()
    if scheme.lower() != "bearer" or not 0 < len(key) <= LONGEST:
        return None
    return key
