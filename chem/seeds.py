"""Seeds that depend on nothing but what is being drawn; samples are drawn in units of 16."""

from __future__ import annotations

UNIT = 16


def mix(*numbers: int) -> int:
    """A 63-bit seed from several integers, by splitmix64; (a, b) and (b, a) differ."""
    state = 0
    for number in numbers:
        state = (state ^ (number & 0xFFFFFFFFFFFFFFFF)) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
