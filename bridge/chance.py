"""Chance for names that nobody else has: no secrets."""

import random


def bits(number: int) -> int:
    """So many of them as a whole number."""
    # Not os.urandom: it lets other threads go first, three times for each webhook.
    return random.getrandbits(number)


def digits(number: int) -> str:
    """So many hex digits."""
    return f"{bits(4 * number):0{number}x}"
