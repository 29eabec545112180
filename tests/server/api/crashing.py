"""`udever serve` with a model that fails: a text of $CRASH tokens kills the model thread, one of $FAIL tokens fails."""

import os
import sys
from typing import Any

from udever.cli import main
from udever.engine.embedder import Embedder

CRASH, FAIL = int(os.environ["CRASH"]), int(os.environ["FAIL"])
_forward = Embedder.forward


def forward(self: Embedder, sequences: Any, **options: Any) -> Any:
    lengths = set(map(len, sequences))
    if CRASH in lengths:
        raise SystemExit("out of order")
    if FAIL in lengths:
        raise ValueError("out of order")
    return _forward(self, sequences, **options)


if __name__ == "__main__":
    Embedder.forward = forward  # type: ignore[method-assign]
    sys.exit(main())
