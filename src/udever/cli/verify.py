"""`udever verify`: is the output of `udever bulk` what its manifest says, and does this model give these vectors?

Invariant: exit code 0 means that everything that was looked at is as it should be; what was looked at is said.
Does not know: what is compared (udever.bulk.verify).
"""

import json
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from udever.cli import ERROR, OK
from udever.cli.options import JsonFlag, ModelChoice, Runtime, load
from udever.errors import OptionError

if TYPE_CHECKING:
    from udever.bulk.verify import Report


def verify(
    output: Annotated[str, Parameter(help="What --output of udever bulk named.")],
    /,
    *,
    choice: ModelChoice = ModelChoice(),  # noqa: B008  frozen
    rows: Annotated[int, Parameter(help="Rows to embed again and compare, of 32 shards at most.")] = 1000,
    runtime: Runtime = Runtime(),  # noqa: B008
    progress: Annotated[bool | None, Parameter(help="A progress bar on stderr; default: on a terminal.")] = None,
    as_json: JsonFlag = False,
) -> int:
    """Check an output of udever bulk: files, inputs, model, and the vectors of sampled rows.

    Exit code 1 and a line for each difference, if there are any.
    """
    if rows < 0:
        raise OptionError(f"--rows is {rows}; it must be at least 0")
    from udever.bulk.storage import Storage
    from udever.engine.progress import progress_bar

    storage = Storage(output)
    model = load(choice.model, runtime)
    from udever.bulk.verify import verify as verify_output

    started = time.perf_counter()
    with progress_bar(shown=sys.stderr.isatty() if progress is None else progress) as watch:
        report = verify_output(storage, model, rows=rows, watch=watch)
    _say(report, output, seconds=time.perf_counter() - started, as_json=as_json)
    return ERROR if report.differences else OK


def _say(report: "Report", output: str, *, seconds: float, as_json: bool) -> None:
    for difference in report.differences:
        print(f"differs: {difference}", file=sys.stderr)
    if report.more:
        print(f"differs: {report.more:,} more", file=sys.stderr)
    verdict = "differs" if report.differences else "is what it says"
    print(
        f"{output} {verdict}: {report.files:,} files read, {report.replayed:,} rows embedded again, largest difference"
        f" {report.largest_difference:.1g} ({seconds:.1f} s)",
        file=sys.stderr,
    )
    if as_json:
        print(json.dumps({**asdict(report), "output": output, "seconds": round(seconds, 3)}, ensure_ascii=False))
