"""Credits as people read and write them; the books count in microcredits.

Invariant: nothing is rounded, in either direction.
Does not know: accounts; imports nothing, so that the command line may import it at once.
"""

from decimal import Decimal, InvalidOperation

from udever.errors import OptionError

DECIMALS = 6
"""Of a credit: it has a million microcredits."""
LARGEST_AMOUNT = 2**53
"""In microcredits."""


def format_credits(microcredits: int) -> str:
    """As credits, exactly: 1,234.5."""
    whole = f"{Decimal(microcredits).scaleb(-DECIMALS):,f}"
    return whole.rstrip("0").rstrip(".") or "0"


def to_microcredits(amount: Decimal | str) -> int:
    """An amount of credits, such as 12.5. Raises `OptionError`: no number, too precise or too large."""
    try:
        spoken = Decimal(amount)
        scaled = spoken.scaleb(DECIMALS) if spoken.is_finite() else Decimal("0.1")
    except InvalidOperation as error:
        raise OptionError(f"{str(amount)[:40]!r} is no amount of credits", hint="use a number, such as 12.5") from error
    if scaled != scaled.to_integral_value() or abs(scaled) >= LARGEST_AMOUNT:
        raise OptionError(f"{amount} is no amount of credits", hint="use at most six decimals, and less than 9 billion")
    return int(scaled)
