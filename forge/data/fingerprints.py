"""Hashes of content, the same on every machine and in every run."""

from __future__ import annotations

import json


def fingerprint(*parts: object) -> str:
    """A hash of content (columns, texts, numbers), the same on every machine and in every run."""
    import xxhash

    digest = xxhash.xxh128()
    for part in parts:
        digest.update(json.dumps(part, ensure_ascii=False, default=_spelled).encode())
    return digest.hexdigest()


def digest(content: bytes) -> str:
    """A hash of raw bytes."""
    import xxhash

    return xxhash.xxh128(content).hexdigest()


def _spelled(value: object) -> str:
    return digest(value) if isinstance(value, bytes) else str(value)
