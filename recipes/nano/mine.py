"""Mines documented functions in six languages from Debian's packages, of many projects a few each.

    python recipes/nano/mine.py --work W           # W/mined/{go,java,javascript,php,python,ruby}.jsonl.gz

Needs apt-get, dpkg-source and Debian's package archive; changes nothing of the system's own package lists. Packages
hold the sources of all languages but Java, whose projects come as source packages. A project that is done is not
fetched again (W/mined/projects).

Invariant: only projects of which every part is under a licence of `PERMISSIVE`, as its copyright file says; nothing of
`HELD_OUT`, which code search is measured on.
Does not know: how functions become training examples (pairs.py), or the dev set (data.py).
"""

import argparse
import gzip
import json
import random
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path

import functions
from functions import Function

from udever.engine.folders import whole_file

PACKAGES = {
    "go": r"golang-\S+-dev",
    "java": r"lib\S+-java",
    "javascript": r"node-\S+",
    "php": r"php-\S+",
    "python": r"python3-\S+",
    "ruby": r"ruby-\S+",
}
"""The names of a language's packages."""
SOURCES = ("java",)
"""Languages whose packages hold no sources."""
ENOUGH = {"go": 60_000, "java": 60_000, "javascript": 60_000, "php": 30_000, "python": 60_000, "ruby": 40_000}
A_PROJECT = 400
"""Functions of one project at most: many projects teach more than much of one."""
SAME_DESCRIPTION = 3
LARGEST_BYTES = 12_000_000
AT_ONCE = 24
"""Projects of one call of apt-get."""
PERMISSIVE = re.compile(
    r"(expat|mit|x11|isc|apache|bsd|0bsd|psf|python|zlib|unlicense|cc0|public-domain|ruby|php|bsl-1|boost|wtfpl|w3c)"
    r"(?!.*gpl)",
    re.IGNORECASE,
)
HELD_OUT = re.compile(
    r"go-git|commons-collections|^rails|activesupport|illuminate|laravel|three\.?js|huggingface|sentence-transformers"
    r"|scikit-learn|matplotlib|^rich$",
)


def projects(archive: "Archive") -> dict[str, list[str]]:
    """language -> names of packages, or of source packages, in a fixed random order."""
    found: dict[str, set[str]] = {language: set() for language in PACKAGES}
    for fields in archive.packages():
        name = fields["Package"]
        source = fields.get("Source", name).split()[0]
        if HELD_OUT.search(name) or HELD_OUT.search(source):
            continue
        if int(fields.get("Size", LARGEST_BYTES)) >= LARGEST_BYTES:  # what is installed and in no archive has no size
            continue
        for language, pattern in PACKAGES.items():
            if re.fullmatch(pattern, name):
                found[language].add(source if language in SOURCES else name)
    return {language: random.Random(0).sample(sorted(names), len(names)) for language, names in found.items()}


def _fields(paragraph: str) -> dict[str, str]:
    """A paragraph of a Debian control file: `Name: value`, longer values go on in lines that begin with a space."""
    return {
        match[1]: match[2].strip() for match in re.finditer(r"^(\S+):[ \t]*(.*(?:\n[ \t].*)*)", paragraph, re.MULTILINE)
    }


def licence(copyright_file: str) -> str | None:
    """The licence of a project's main files; None if any part of it is under one that is not permissive, or none is
    named in the machine-readable way.
    """
    main = None
    for paragraph in re.split(r"\n\s*\n", copyright_file):
        fields = _fields(paragraph)
        files = fields.get("Files", "")
        if not files or files.startswith("debian/"):
            continue
        name = (fields.get("License", "").splitlines() or [""])[0].strip()
        every = re.split(r"\s+and\s+|,\s*", name)
        if not all(any(PERMISSIVE.match(choice.strip()) for choice in re.split(r"\s+or\s+|\|", one)) for one in every):
            return None
        main = name if files.split()[0] == "*" else main
    return main


class Archive:
    """Debian's packages, through an apt that has its lists in a folder of ours."""

    def __init__(self, folder: Path) -> None:
        parts, lists = folder / "sources", folder / "lists"
        parts.mkdir(parents=True, exist_ok=True)
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        for path in Path("/etc/apt/sources.list.d").glob("*.sources"):
            (parts / path.name).write_text(re.sub(r"^Types: deb$", "Types: deb deb-src", path.read_text(), flags=re.M))
        self._options = ["-qq", "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Etc::sourceparts={parts}"]
        self._options += ["-o", f"Dir::Cache={folder}"]
        subprocess.run(["apt-get", *self._options, "update"], check=True)

    def packages(self) -> Iterator[dict[str, str]]:
        """The fields of every package."""
        command = ["apt-cache", *self._options, "dumpavail"]
        for paragraph in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n\n"):
            if fields := _fields(paragraph):
                yield fields

    def fetch(self, names: list[str], folder: Path, *, sources: bool) -> None:
        """Download packages; apt fetches what it can of them, and what is not whole is not unpacked later."""
        what = ["source", "--download-only", "--only-source"] if sources else ["download"]
        subprocess.run(["apt-get", *self._options, *what, *names], cwd=folder, capture_output=True, check=False)


def mine(language: str, fetched: Path, project: str) -> list[dict[str, str]]:
    """A project's functions, `A_PROJECT` at most, from its .deb or .dsc file."""
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        command = ["dpkg-deb", "--extract", fetched, tree]
        if language in SOURCES:
            command = ["dpkg-source", "--no-check", "--no-copy", "--extract", fetched, tree]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return []
        said = tree / ("debian/copyright" if language in SOURCES else f"usr/share/doc/{project}/copyright")
        name = licence(said.read_text(errors="replace")) if said.exists() else None
        if name is None:
            return []
        found = functions.of_folder(tree, language, order=random.Random(project))
        kept = list(islice(_unlike(found), A_PROJECT))
    return [{"doc": f.doc, "code": f.code, "name": f.name, "lang": language, "pkg": project, "lic": name} for f in kept]


def _unlike(found: Iterator[Function]) -> Iterator[Function]:
    seen: set[str] = set()
    for function in found:
        if function.doc not in seen and function.code not in seen:
            seen |= {function.doc, function.code}
            yield function


def mine_language(language: str, names: list[str], *, archive: Archive, out: Path, enough: int) -> None:
    """Go through the projects until there is enough, and write what they gave."""
    done = out / "projects" / language
    done.mkdir(parents=True, exist_ok=True)
    count = sum(len(path.read_text().splitlines()) for path in done.glob("*.jsonl"))
    with ProcessPoolExecutor() as pool:
        while names and count < enough:
            batch, names = names[:AT_ONCE], names[AT_ONCE:]
            missing = [name for name in batch if not (done / f"{name}.jsonl").exists()]
            with tempfile.TemporaryDirectory() as temporary:
                archive.fetch(missing, Path(temporary), sources=language in SOURCES)
                fetched = {path.name.split("_")[0]: path for path in Path(temporary).glob("*.d[es][bc]")}
                working = {
                    name: pool.submit(mine, language, fetched[name], name) for name in missing if name in fetched
                }
                for name, future in working.items():
                    rows = future.result()
                    with whole_file(done / f"{name}.jsonl") as path:
                        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
                    count += len(rows)
            print(f"{language}: {count:,} functions, {len(names):,} projects left", flush=True)
    _gather(language, done, out, enough=enough)


def _gather(language: str, done: Path, out: Path, *, enough: int) -> None:
    rows = [json.loads(line) for path in sorted(done.glob("*.jsonl")) for line in path.read_text().splitlines()]
    random.Random(0).shuffle(rows)
    descriptions: Counter[str] = Counter()
    codes: set[str] = set()
    kept = []
    for row in rows:
        code = "".join(row["code"].split())
        if code not in codes and descriptions[row["doc"].lower()] < SAME_DESCRIPTION and len(kept) < enough:
            kept.append(row)
            codes.add(code)
            descriptions[row["doc"].lower()] += 1
    with whole_file(out / f"{language}.jsonl.gz") as path, gzip.open(path, "wt", encoding="utf8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
    print(f"{language}: {len(kept):,} functions of {len({row['pkg'] for row in kept}):,} projects", flush=True)


def main() -> None:
    """Write one file a language."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--language", choices=PACKAGES, action="append", help="only this one; repeatable")
    parser.add_argument("--enough", type=int, help="functions of a language at most")
    args = parser.parse_args()
    for tool in ("apt-get", "dpkg-source"):
        if shutil.which(tool) is None:
            parser.error(f"{tool} is not there: Debian's sources are read with it (apt-get install dpkg-dev)")
    out = args.work / "mined"
    archive = Archive(out / "apt")
    found = projects(archive)
    for language in args.language or PACKAGES:
        enough = args.enough or ENOUGH[language]
        mine_language(language, found[language], archive=archive, out=out, enough=enough)


if __name__ == "__main__":
    main()
