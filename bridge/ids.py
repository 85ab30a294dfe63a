"""Random numbers for identifiers. They are no secrets: `random` is predictable."""

import random


def bits(number: int) -> int:
    """Return *number* random bits as an integer."""
    # Not os.urandom: it releases the GIL, three times for each webhook.
    return random.getrandbits(number)


def digits(number: int) -> str:
    """Return *number* random hex digits."""
    return f"{bits(4 * number):0{number}x}"
