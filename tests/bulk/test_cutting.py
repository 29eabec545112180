"""Cuts cover every row once and in order, whatever the bytes, the limits and the sizes they are read in."""

import csv
import io
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from udever.bulk import cutting
from udever.bulk.cutting import Limits, RecordLines, csv_records, cut_lines, cut_records, cut_row_groups, split_lines
from udever.bulk.storage import digest
from udever.errors import FileInputError

LIMITS = st.builds(Limits, rows=st.integers(1, 7), bytes=st.integers(1, 60))
BLOCKS = st.integers(1, 40)


@given(lines=st.lists(st.binary(max_size=12)), limits=LIMITS, block=BLOCKS, start=st.integers(0, 3))
def test_lines(lines: list[bytes], limits: Limits, block: int, start: int) -> None:
    data = b"x" * start + b"\n".join(lines)
    file = io.BytesIO(data)
    file.seek(start)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "BLOCK_BYTES", block)
        cuts = list(cut_lines(file, start=start, limits=limits))
    pieces = [data[cut.start : cut.stop] for cut in cuts]
    assert b"".join(pieces) == data[start:]
    assert [digest(piece) for piece in pieces] == [cut.digest for cut in cuts]
    assert [cut.rows for cut in cuts] == [len(split_lines(piece)) for piece in pieces]
    assert all(piece.endswith(b"\n") for piece in pieces[:-1])
    assert all(before.first + before.rows == after.first for before, after in pairwise(cuts))
    assert all(1 <= cut.rows <= limits.rows for cut in cuts)
    assert all(len(piece[: piece[:-1].rfind(b"\n") + 1]) < limits.bytes for piece in pieces), "closed as soon as full"


FIELDS = st.text(st.sampled_from('ab,"\n é😀'), max_size=6)


@given(
    rows=st.lists(st.lists(FIELDS, min_size=2, max_size=2)),
    limits=LIMITS,
    block=BLOCKS,
    newline=st.sampled_from(["\n", "\r\n"]),
    last=st.booleans(),
)
def test_csv_is_cut_between_records_only(
    rows: list[list[str]], limits: Limits, block: int, newline: str, last: bool
) -> None:
    written = io.StringIO(newline="")
    csv.writer(written, lineterminator=newline).writerows(rows)
    data = written.getvalue().encode()
    if last and data:
        data = data.removesuffix(newline.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cutting, "BLOCK_BYTES", block)
        cuts = list(cut_records(io.BytesIO(data), start=0, limits=limits, delimiter=",", name="x.csv"))
    read = []
    for cut in cuts:
        lines = RecordLines(split_lines(data[cut.start : cut.stop]), name="x.csv", first_row=cut.first)
        records = list(csv_records(lines, delimiter=","))
        assert len(records) == cut.rows
        assert len(read) == cut.first
        read += records
    assert read == rows
    assert b"".join(data[cut.start : cut.stop] for cut in cuts) == data


def test_a_malformed_record_is_one_row_and_the_next_is_sound() -> None:
    data = b'a,b\n"c"d,e\nf,g\n'
    [cut] = cut_records(io.BytesIO(data), start=0, limits=Limits(9, 99), delimiter=",", name="x.csv")
    assert cut.rows == 3
    records = list(csv_records(RecordLines(split_lines(data), name="x.csv", first_row=0), delimiter=","))
    assert isinstance(records[1], csv.Error)
    assert records[::2] == [["a", "b"], ["f", "g"]]


@pytest.mark.parametrize("rest", ["", "x\n" * 50], ids=["at the end", "that would swallow the file"])
def test_an_open_quote_is_refused_by_row(rest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "RECORD_BYTES", 30)
    data = f'a,b\nc,d\n"e,f\n{rest}'.encode()
    with pytest.raises(FileInputError, match=r"x\.csv: row 3 opens a quote"):
        list(cut_records(io.BytesIO(data), start=0, limits=Limits(1, 99), delimiter=",", name="x.csv"))


@given(groups=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 300))), limits=LIMITS)
def test_row_groups(groups: list[tuple[int, int]], limits: Limits) -> None:
    cuts = list(cut_row_groups(groups, limits=limits))
    assert [row for cut in cuts for row in range(cut.start, cut.stop)] == list(range(sum(rows for rows, _ in groups)))
    assert all(1 <= cut.rows <= limits.rows and cut.rows == cut.stop - cut.start for cut in cuts)


def test_small_row_groups_are_taken_together_and_large_ones_split_evenly() -> None:
    cuts = list(cut_row_groups([(3, 9), (3, 9), (3, 9), (25, 9), (1, 9)], limits=Limits(10, 10**6)))
    assert [cut.rows for cut in cuts] == [9, 8, 8, 9, 1]
