"""`udever export`: a model as a folder for sentence-transformers, or as ONNX files.

Invariant: the folder appears when it is complete and its vectors are found to be the model's, or not at all.
Does not know: what stands in the folder (export/for_sentence_transformers.py, export/for_onnx.py).
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from udever.cli.options import JsonFlag
from udever.errors import OptionError


def export(
    model: Annotated[str, Parameter(help="Built-in name, local folder (a delta, too) or hub id.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=("--output", "-o"), help="The folder to write; it must not be there yet.")],
    format: Annotated[Literal["sentence-transformers", "onnx"], Parameter(help="Who shall load it.")],
    int8: Annotated[
        bool, Parameter(negative=(), show_default=False, help="onnx: write a quantised graph, too.")
    ] = False,
    dtype: Annotated[
        Literal["exact", "fp32", "fp16", "bf16"] | None,
        Parameter(show_default=False, help="sentence-transformers: of the weights; default: as the model has them."),
    ] = None,
    check: Annotated[
        bool, Parameter(help="Compare its vectors with the model's, where sentence-transformers 6 is installed.")
    ] = True,
    as_json: JsonFlag = False,
) -> None:
    """Write a model for sentence-transformers or ONNX Runtime, markers included.

    What is written is compared with the model on texts in many languages, in both roles, whole and truncated.
    """
    if format == "onnx":
        _refuse({"--dtype": dtype is not None, "--no-check": not check}, format)
        from udever.training.export.for_onnx import export_onnx

        checks: dict[str, Any] = asdict(export_onnx(model, output, int8=int8))
    else:
        _refuse({"--int8": int8}, format)
        from udever.training.export.for_sentence_transformers import export_sentence_transformers

        found = export_sentence_transformers(model, output, storage=dtype or "exact", check=check)
        checks = {dtype or "exact": asdict(found) if found else None}
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if as_json:
        print(json.dumps({"output": str(output), "format": format, "bytes": size, "checked": checks}))
        return
    for precision, checked in checks.items():
        _tell(precision, checked, asked=check and precision != "int8")
    print(f"{output}: {size / 1e6:,.1f} MB, for {format}")


def _refuse(given: dict[str, bool], format_: str) -> None:
    for option, is_given in given.items():
        if is_given:
            raise OptionError(f"{option} is not for --format {format_}", hint="leave it out")


def _tell(precision: str, checked: dict[str, Any] | None, *, asked: bool) -> None:
    if checked:
        least, texts = math.floor(checked["min_cosine"] * 1e6) / 1e6, checked["texts"]  # not rounded up to 1
        print(f"{precision}: cosine to the model's vectors at least {least:.6f} ({texts} texts)", file=sys.stderr)
    elif asked:
        print("not checked: sentence-transformers 6 is not installed (pip install 'udever[export]')", file=sys.stderr)
