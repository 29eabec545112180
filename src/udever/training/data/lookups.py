"""What stands behind an id: a line of a file larger than memory, or a pair's score among many millions.

    LineIndex(collection, work=folder)["1234"] -> the text;  Scores(path, work=folder).of("77") -> {"1234": 9.5}

Invariant: memory grows by 16 bytes a line (scores: by what an entry of a dict takes a query); the rest stays on disk. A
pickle of scores is read without running anything that stands in it.
Does not know: what the texts and scores are for.
"""

import gzip
import mmap
import pickle
import shutil
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import numpy as np

from udever.errors import ExamplesError
from udever.training.data.rows import Reading, read_cells
from udever.training.data.text_index import digest_of


class LineIndex:
    """Lines `id <tab> text` of a file; further tabs are read as blanks."""

    def __init__(self, path: Path, *, work: Path, reading: Reading) -> None:
        """Read the ids.

        Args:
            work: folder for an unpacked copy of a gzipped file.

        Raises:
            ExamplesError: the file is missing, damaged or empty, or a line has no tab.
        """
        self.path = path
        """The file."""
        keys, offsets, offset = array("q"), array("q"), 0
        try:
            self._plain = _unpacked(path, work)
            with self._plain.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    id_, tab, _ = line.partition(b"\t")
                    if not tab:
                        raise ExamplesError(f"{path}:{number}: no tab between id and text", hint="id <tab> text")
                    keys.append(_key(id_))
                    offsets.append(offset)
                    offset += len(line)
                reading.advance(reading.done_bytes + path.stat().st_size)
                if not offset:
                    raise ExamplesError(f"{path} is empty")
                self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, EOFError) as error:
            raise ExamplesError(f"cannot read {path}: {error}", hint="is it there, and whole?") from error
        unsorted = np.frombuffer(keys, np.int64)
        order = np.argsort(unsorted, kind="stable")
        self._keys, self._offsets = unsorted[order], np.frombuffer(offsets, np.int64)[order]

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, id_: str) -> str:
        """The text of an id.

        Raises:
            KeyError: there is no such id.
            ExamplesError: its line is not UTF-8.
        """
        wanted = id_.encode()
        key = _key(wanted)
        place = int(np.searchsorted(self._keys, key))
        while place < len(self) and self._keys[place] == key:
            begin = int(self._offsets[place])
            end = self._bytes.find(b"\n", begin)
            found, _, text = self._bytes[begin : end if end >= 0 else len(self._bytes)].partition(b"\t")
            if found == wanted:
                return self._decoded(text, id_)
            place += 1
        raise KeyError(id_)

    def _decoded(self, text: bytes, id_: str) -> str:
        try:
            return text.decode("utf-8").rstrip("\r").replace("\t", " ")
        except UnicodeDecodeError:
            raise ExamplesError(f"{self.path}: the text of {id_} is not UTF-8", hint="convert it with iconv") from None


class Scores:
    """Scores of (query, passage) pairs."""

    def __init__(self, path: Path, *, work: Path, reading: Reading) -> None:
        """Read a pickle (`.pkl`, `.pickle`) of {qid: {pid: score}}, or lines `qid <tab> pid <tab> score`; also gzipped.

        Args:
            work: folder for the scores as numbers.

        Raises:
            ExamplesError: the file is missing, damaged, or holds something else.
        """
        self._runs: dict[str, list[tuple[int, int]]] = {}
        self._count = 0
        with (work / "scored.pids").open("wb") as self._pids_file, (work / "scored.scores").open("wb") as self._file:
            if ".pkl" in path.name or ".pickle" in path.name:
                self._read_pickle(path, reading)
            else:
                self._read_lines(path, reading)
        shape = (self._count,)
        self._pids = (
            np.memmap(work / "scored.pids", np.int64, "r", shape=shape) if self._count else np.empty(0, np.int64)
        )
        self._scores = np.memmap(work / "scored.scores", np.float32, "r", shape=shape) if self._count else np.empty(0)

    def of(self, qid: str) -> "ScoresOfOne":
        """The scores of a query's passages."""
        runs = [slice(begin, end) for begin, end in self._runs.get(qid, ())]
        keys = [key for run in runs for key in self._pids[run].tolist()]
        values = [score for run in runs for score in self._scores[run].tolist()]
        return ScoresOfOne(dict(zip(keys, values, strict=True)))

    def add(self, qid: str, pids: Sequence[str], scores: Sequence[float]) -> None:
        """Append scores of a query's passages."""
        np.array([_key(pid.encode()) for pid in pids], np.int64).tofile(self._pids_file)
        np.array(scores, np.float32).tofile(self._file)
        runs = self._runs.setdefault(qid, [])
        if runs and runs[-1][1] == self._count:
            runs[-1] = (runs[-1][0], self._count + len(pids))
        else:
            runs.append((self._count, self._count + len(pids)))
        self._count += len(pids)

    def _read_lines(self, path: Path, reading: Reading) -> None:
        for number, (qid, pid, score) in read_cells(path, reading, counts=(3,)):
            try:
                self.add(qid, [pid], [float(score)])
            except ValueError:
                reading.complain(f"{path}:{number}: {score!r} is no number", hint="qid <tab> pid <tab> score")

    def _read_pickle(self, path: Path, reading: Reading) -> None:
        try:
            with path.open("rb") as raw:
                file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
                _ScoresUnpickler(cast("BinaryIO", file), self).load()
            reading.advance(reading.done_bytes + path.stat().st_size)
        except (OSError, EOFError, pickle.UnpicklingError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise ExamplesError(
                f"cannot read {path}: {error}", hint="a dict {qid: {pid: score}}, or lines qid <tab> pid <tab> score"
            ) from error


class ScoresOfOne:
    """One query's scores."""

    def __init__(self, scores: dict[int, float]) -> None:
        self._scores = scores

    def get(self, pid: str) -> float | None:
        """The score of a passage; None if it has none."""
        return self._scores.get(_key(pid.encode()))


class _ScoresUnpickler(pickle._Unpickler):
    """Hands 160 million scores on as they are read, keeping none; builds numbers, strings and dicts only."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: BinaryIO, scores: Scores) -> None:
        super().__init__(file)
        self._scores = scores

    def load(self) -> Any:
        """Read it all; what it returns is a dict without its scores."""
        found = super().load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError("not a dict of dicts")
        return found

    def find_class(self, module: str, name: str) -> Any:
        """NumPy's numbers; everything else could run code."""
        if name == "scalar" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return np.float32().__reduce__()[0]
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        raise pickle.UnpicklingError(f"it would run {module}.{name}")

    def load_setitems(self) -> None:
        """Entries of the dict on the stack: scores of the query whose key lies below it, or queries already done."""
        items = self.pop_mark()
        self._hand_on(items[::2], items[1::2])

    def load_setitem(self) -> None:
        """The same for a single entry."""
        value, key = self.stack.pop(), self.stack.pop()
        self._hand_on([key], [value])

    def _hand_on(self, keys: list[Any], values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise pickle.UnpicklingError("not a dict of dicts")
        if values and not isinstance(values[0], dict):
            self._scores.add(str(self.stack[-2]), [str(key) for key in keys], [float(value) for value in values])

    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.SETITEM[0]] = load_setitem


def _key(id_: bytes) -> int:
    return int.from_bytes(digest_of(id_)[:8], "little", signed=True)


def _unpacked(path: Path, work: Path) -> Path:
    """The file itself, or a copy of what is packed in it."""
    if path.suffix.lower() != ".gz":
        return path
    copy = work / path.name.removesuffix(".gz")
    with suppress(FileNotFoundError):
        copy.unlink()
    with gzip.open(path, "rb") as packed, copy.open("xb") as plain:
        shutil.copyfileobj(packed, plain, 1 << 20)
    return copy
