"""Checks of the numbers that constructors of objectives and parts are given."""

import math

from lit_pref.errors import UsageError


def positive(value: float, name: str) -> float:
    """Return `value`; refuse it if it is not a positive, finite number."""
    if not 0 < value < math.inf:
        raise UsageError(f"{name} must be positive and finite, got {value}.")
    return value


def finite(value: float, name: str) -> float:
    """Return `value`; refuse it if it is not a finite number."""
    if not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value}.")
    return value
