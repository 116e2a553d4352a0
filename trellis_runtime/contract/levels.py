"""The ladder's levels as numbers, for requests, answers, metrics and the ladder itself."""

from __future__ import annotations

LOWEST_LEVEL = 12
"""The last rung of the ladder: the least that a caller can accept."""

TEXTURE_LEVELS = range(10, LOWEST_LEVEL + 1)
"""The levels at which the texture is worse than asked."""
