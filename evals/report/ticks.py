"""Axes of a chart: where the ticks stand and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten inside [low, high], at most `count` + 1."""
    if not high > low:
        return [low]
    coarse = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(coarse))
    width = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= coarse)
    return [index * width for index in range(math.ceil(low / width), math.floor(high / width) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten inside [low, high], with their 2- and 5-folds while those are not too many.

    Args:
        low: > 0.
        high: > low.
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**exponent for exponent in exponents if low <= 10.0**exponent <= high]
    finer = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    finer = [value for value in finer if low <= value <= high]
    return finer if len(finer) <= 6 else decades[:: math.ceil(len(decades) / 5)]


def common_exponent(ticks: Sequence[float]) -> int:
    """Power of ten to set apart from the labels of small ticks; 0 where they read well as they are."""
    largest = max(map(abs, ticks), default=0.0)
    return math.floor(math.log10(largest)) if 0 < largest < 0.01 else 0


def compact(value: float, digits: int = 4) -> str:
    """A number in few characters: 0.0312, 1,250, 12.5k, 3.4M, 1.5e−4."""
    if not math.isfinite(value):
        return "not finite"
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e13):
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        text = f"{_trimmed(mantissa)}e{int(exponent)}"
    elif size >= 1e9:
        text = _significant(value / 1e9, digits) + "B"
    elif size >= 1e6:
        text = _significant(value / 1e6, digits) + "M"
    elif size >= 1e4:
        text = _significant(value / 1e3, digits) + "k"
    else:
        text = _significant(value, digits)
    return text.replace("-", MINUS)


def grouped(count: float) -> str:
    """A whole number with its thousands apart: 60,000."""
    return f"{count:,.0f}".replace("-", MINUS)


def _significant(value: float, digits: int) -> str:
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0
    return _trimmed(f"{value:,.{decimals}f}")


def _trimmed(text: str) -> str:
    return text.rstrip("0").rstrip(".") if "." in text else text
