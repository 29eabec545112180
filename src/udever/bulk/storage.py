"""Files on this machine or behind any fsspec URL; what is written appears whole or not at all.

    with storage.writing("vectors/part-00000.parquet") as path: ...   # a local path; it takes its name at the end

Invariant: a reader never sees half a file, and a process that is killed leaves none under a final name.
Does not know: what the files hold.
"""

import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from udever.errors import OptionError, OutputError, UdeverError

WORK = "_state"
"""The folder in an output for what a run must remember; the underscore hides it from readers of Parquet folders."""
UNFINISHED = f"{WORK}/tmp"
"""Files that have not got their name yet; on the same file system, so that a rename is enough."""
WHOLE_PUTS = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"})
"""File systems where an object appears when its last byte has come: no second name is needed."""
_CHUNK_BYTES = 1 << 22


def file_system(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it) of a local path or a URL.

    Raises:
        OptionError: a protocol nobody knows.
        UdeverError: its package is not installed.
    """
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}.get(url.split(":")[0], error.name)
        raise UdeverError(
            f"{url}: this kind of storage needs a package that is not installed ({error})",
            hint=f"pip install {package}" if package else "install it",
        ) from error
    except ValueError as error:
        raise OptionError(f"{url}: {error}", hint="local paths and fsspec URLs can be read and written") from error
    return fs, str(path)


def is_local(fs: Any) -> bool:
    """Whether paths of this file system are paths of this machine."""
    return "file" in _protocols(fs)


def digest(data: bytes) -> str:
    """32 hex digits that stand for the bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """`digest` of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return stream_digest(file)


def stream_digest(file: Any) -> str:
    """`digest` of all that is left in an open file."""
    hasher = hashlib.blake2b(digest_size=16)
    while chunk := file.read(_CHUNK_BYTES):
        hasher.update(chunk)
    return hasher.hexdigest()


class Storage:
    """The files below one folder. Pickles as its URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = file_system(url)

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.address,)

    @cached_property
    def local(self) -> bool:
        """Whether it is a folder of this machine."""
        return is_local(self._fs)

    @cached_property
    def address(self) -> str:
        """The folder as every process of this machine can find it, whatever its working folder."""
        return self._root if self.local else self.url

    def path(self, name: str) -> str:
        """A file's path in its file system."""
        return f"{self._root.rstrip('/')}/{name}" if name else self._root

    def url_of(self, name: str) -> str:
        """A file's local path or URL."""
        return f"{self.address.rstrip('/')}/{name}"

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write; when the block ends without an exception, its content stands under `name`."""
        if self.local:
            with self._writing_here(Path(self.path(name))) as path:
                yield path
            return
        with tempfile.TemporaryDirectory(prefix="udever-") as folder:
            path = Path(folder, Path(name).name)
            yield path
            self._upload(path, name)

    def write(self, name: str, data: bytes) -> None:
        """Put a small file there at once."""
        with self.writing(name) as path:
            path.write_bytes(data)

    def read(self, name: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: there is none.
        """
        return bytes(self._fs.cat_file(self.path(name)))

    def read_parts(self, name: str, parts: Sequence[tuple[int, int]]) -> list[bytes]:
        """Parts of a file, from an offset to another, fetched together where the file system can do so."""
        starts, stops = ([part[end] for part in parts] for end in (0, 1))
        read = self._fs.cat_ranges([self.path(name)] * len(parts), starts, stops, on_error="raise")
        for part in read:
            if isinstance(part, Exception):  # older releases of fsspec return errors, whatever they are told
                raise part
        return [bytes(part) for part in read]

    def open(self, name: str) -> Any:
        """A file, opened for reading bytes."""
        return self._fs.open(self.path(name), "rb")

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name below this storage → bytes, of all files in a folder and below."""
        self._fs.invalidate_cache()
        path = self.path(folder)
        try:
            found = self._fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        root = self._fs._strip_protocol(self._root).rstrip("/")
        return {name[len(root) + 1 :]: int(info["size"] or 0) for name, info in sorted(found.items()) if name != root}

    def size(self, name: str) -> int:
        """A file's bytes."""
        return int(self._fs.size(self.path(name)))

    def names(self) -> set[str]:
        """What stands in the folder itself."""
        self._fs.invalidate_cache()
        try:
            return {path.rstrip("/").rpartition("/")[2] for path in self._fs.ls(self._root, detail=False)}
        except FileNotFoundError:
            return set()

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; nothing there is fine."""
        self._fs.invalidate_cache()
        try:
            self._fs.rm(self.path(name), recursive=True)
        except FileNotFoundError:
            return

    def require_folder(self) -> None:
        """Refuse a name under which a file stands.

        Raises:
            OutputError: it is a file.
        """
        if self._fs.isfile(self._root):
            raise OutputError(f"{self.url} is a file", hint="choose another name for the output folder")

    @contextmanager
    def _writing_here(self, target: Path) -> Iterator[Path]:
        unfinished = Path(self.path(UNFINISHED), f"{secrets.token_hex(6)}-{target.name}")
        unfinished.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield unfinished
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished.replace(target)
        finally:
            unfinished.unlink(missing_ok=True)

    def _upload(self, path: Path, name: str) -> None:
        if WHOLE_PUTS.intersection(_protocols(self._fs)):
            self._fs.put_file(str(path), self.path(name))
            return
        unfinished = self.path(f"{UNFINISHED}/{secrets.token_hex(6)}-{path.name}")
        for parent in (unfinished, self.path(name)):
            self._fs.makedirs(parent.rpartition("/")[0], exist_ok=True)
        self._fs.put_file(str(path), unfinished)
        self._fs.mv(unfinished, self.path(name))


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)
