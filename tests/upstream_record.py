"""What the stand-in for upstream was given, in order: tests read it, and clear it before a run."""

from __future__ import annotations

from typing import Any

CALLS: list[tuple[str, dict[str, Any]]] = []


def note(what: str, **facts: Any) -> None:
    """Remember one call."""
    CALLS.append((what, facts))


def calls(what: str) -> list[dict[str, Any]]:
    """Return the facts of all calls of one kind, in order."""
    return [facts for name, facts in CALLS if name == what]
