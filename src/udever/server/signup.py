"""Sign-up: an account, its key and some free credit, for whoever asks, so many a day from one address.

Invariant: all of it happens in one transaction, or nothing; an address is stored only as an HMAC under the pepper.
Does not know: whether the operator has switched it on, or how the address was found (mind proxies).
"""

import secrets

from udever.server.addresses import Addresses
from udever.server.auth import Key, Keys
from udever.server.ledger import Ledger
from udever.server.store import Store
from udever.server.windows import DAY_US


class SignUps:
    """Lets strangers in. Thread-safe."""

    def __init__(self, store: Store, *, keys: Keys, ledger: Ledger, addresses: Addresses) -> None:
        self._store = store
        self._keys = keys
        self._ledger = ledger
        self._addresses = addresses

    def sign_up(
        self,
        *,
        address: str,
        microcredits: int,
        per_day: int = 3,
        name: str = "",
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        max_concurrent: int | None = None,
    ) -> tuple[str, Key]:
        """A new account `free-…` with a key and `microcredits` of credit. The secret is returned here and never again.

        Args:
            address: the client's IP address.
            per_day: how many sign-ups an address may make at once; they come back evenly over a day.

        Raises:
            RateLimitedError: `what` is "signups".
            OptionError: not an IP address, or a value that cannot be.
        """
        with self._store.write() as connection:
            self._addresses.take(connection, "signups", address=address, limit=per_day, period_us=DAY_US)
            secret, key = self._keys.create_within(
                connection,
                account=f"free-{secrets.token_hex(6)}",
                name=name,
                requests_per_minute=requests_per_minute,
                tokens_per_minute=tokens_per_minute,
                max_concurrent=max_concurrent,
            )
            self._ledger.add(connection, "grant", account=key.account, microcredits=microcredits, note="sign-up")
        return secret, key
