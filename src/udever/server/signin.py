"""Sign-in: a secret that a person types is checked, and wrong ones are counted by address.

Invariant: an address may be wrong so many times and then waits, on every replica; being right costs nothing.
Does not know: cookies, or how the address was found (mind proxies).
"""

from udever.server.addresses import Addresses
from udever.server.auth import Key, Keys
from udever.server.store import Store
from udever.server.windows import MINUTE_US

FAILURES = 10
"""At once; they come back evenly over PERIOD_US."""
PERIOD_US = 10 * MINUTE_US


class SignIns:
    """Lets holders of a key in. Thread-safe."""

    def __init__(self, store: Store, *, keys: Keys, addresses: Addresses) -> None:
        self._store = store
        self._keys = keys
        self._addresses = addresses

    def sign_in(self, secret: str, *, address: str) -> Key:
        """Whose secret this is. It is counted as wrong until it proves right, so that many at once get no further.

        Raises:
            InvalidKeyError: unknown, revoked or expired.
            RateLimitedError: `what` is "signins".
            OptionError: not an IP address.
        """
        with self._store.write() as connection:
            self._addresses.take(connection, "signins", address=address, limit=FAILURES, period_us=PERIOD_US)
        key = self._keys.authenticate(secret)
        with self._store.write() as connection:
            self._addresses.give_back(connection, "signins", address=address, limit=FAILURES, period_us=PERIOD_US)
        return key
