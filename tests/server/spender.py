"""A process of its own that spends an account's credit: `spender.py` reads its orders as JSON from stdin.

It admits requests from several threads until the credit is gone, or for ever if told to (someone then kills it), and
prints how many requests it admitted.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

from udever.server.account_errors import InsufficientCreditError
from udever.server.accounts import open_accounts


def main() -> None:
    orders = json.load(sys.stdin)
    with open_accounts(orders["url"], pepper=orders["pepper"]) as accounts:
        key = accounts.keys.get(orders["key"])

        def spend(_: int) -> int:
            admitted = 0
            while True:
                request_id = str(uuid4())
                try:
                    accounts.ledger.admit(
                        key, request_id=request_id, model="m", role="query", tokens=3, texts=1,
                        microcredits=orders["microcredits"],
                    )  # fmt: skip
                except InsufficientCreditError:
                    return admitted
                admitted += 1
                if admitted % 3:
                    accounts.ledger.settle(request_id)
                elif orders["refund"]:
                    accounts.ledger.refund(request_id, reason="test")

        with ThreadPoolExecutor(orders["threads"]) as pool:
            print(sum(pool.map(spend, range(orders["threads"]))), flush=True)


if __name__ == "__main__":
    main()
