"""Functions and what their authors say of them, from source files of six languages and from packages."""

import importlib
import random
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).parents[2] / "recipes" / "nano"

SOURCES = {
    "go": """package a
// Copyright 2020 somebody or other.

// Sum returns the sum of a and b,
// quickly.
//
// More of it.
func Sum(a int, b int) int {
	return a + b // not far from 12345
}
var x = 1 // Close is something else.
func Close(a int, b int) int { return a - b + 12345 + 54321 }
""",
    "java": """public class A {
  /**
   * Returns the {@link Foo sum} of <b>two</b> numbers.
   * <p>
   * More of it.
   * @param a one
   */
  @Override @Named("x")
  public int sum(int a, int b) {
    return a + b + 1;
  }
  // Not what documents a method.
  public int difference(int a, int b) { return a - b; }
}""",
    "javascript": """
/** Returns the sum of two numbers.
 * @param {number} a one */
export function sum(a, b) { return a + b + 123456789; }
/**
 * Puts a thing into the list.
 */
List.prototype.put = function (thing) { this.things.push(thing); };
class A {
  /** Gets the value of it all. */
  get value() { return this._value + 1111111111; }
}
const o = {
  /** Makes a new one of these. */
  make: function () { return new Thing(11111111111); } };
/** Turns one into the other. */
const turn = (one) => { return one + 111111111111; };
/** Not a function at all. */
const number = 11111111111111111111111111111111111;
""",
    "php": """<?php
class A {
    /**
     * Get the name of the thing.
     *
     * @return string
     */
    public function getName(): string { return $this->name . "aaaaaa"; }
}""",
    "python": '''
class A:
    @property
    def sum(self, x):
        """Return the sum of x and one.

        More of it.
        """
        return x + 1 + 2222222222222222

    def nothing(self):
        """Do nothing at all here."""
''',
    "ruby": """
class A
  # Returns the name of it all.
  # @param x one
  def name(x)
    @name + "aaaaaaaaaaaaaaaaaaaaaaaaaaa"
  end

  # Builds a new one of these.
  def self.build
    new(1111111111111111111111111)
  end
end""",
}
FOUND = {
    "go": [("Sum returns the sum of a and b, quickly.", "func Sum(a int, b int) int {\n\treturn a + b // not", "Sum")],
    "java": [("Returns the sum of two numbers.", "public int sum(int a, int b) {\n  return a + b + 1;\n}", "sum")],
    "javascript": [
        ("Returns the sum of two numbers.", "export function sum(a, b) {", "sum"),
        ("Puts a thing into the list.", "List.prototype.put = function (thing) {", "List.prototype.put"),
        ("Turns one into the other.", "const turn = (one) => {", "turn"),
        ("Makes a new one of these.", "make: function () {", "make"),
        ("Gets the value of it all.", "get value() {", "value"),
    ],
    "php": [("Get the name of the thing.", "public function getName(): string {", "getName")],
    "python": [("Return the sum of x and one.", "def sum(self, x):\n    return x + 1 +", "sum")],
    "ruby": [
        ("Returns the name of it all.", 'def name(x)\n  @name + "', "name"),
        ("Builds a new one of these.", "def self.build\n  new(", "build"),
    ],
}


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(RECIPES)
    return importlib.import_module("mine")


@pytest.mark.parametrize("language", SOURCES)
def test_the_first_paragraph_before_a_function_describes_it(mine: ModuleType, language: str) -> None:
    found = list(mine.functions.of_source(SOURCES[language], language))
    assert [(doc, name) for doc, _, name in found] == [(doc, name) for doc, _, name in FOUND[language]]
    for function, (_, begins, _) in zip(found, FOUND[language], strict=True):
        assert function.code.startswith(begins)


@pytest.mark.parametrize("broken", ["def f(:\n", "\x00", "é" * 50, "class A {{{ /** Says what it does. */ int f("])
@pytest.mark.parametrize("language", SOURCES)
def test_what_cannot_be_read_gives_nothing(mine: ModuleType, language: str, broken: str) -> None:
    assert list(mine.functions.of_source(broken, language)) == []


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("// TODO: say what it does", None),
        ("/** {@inheritDoc} */", None),
        ("# short one", None),
        ("/** 1 2 3 4 5 6 7 8 9 10 11 */", None),
        ("/** Возвращает сумму двух чисел здесь */", None),
        ("/** Says " + "very " * 100 + "much. */", None),
        ("/**\n * Says a &lt;b&gt;\n * in two lines.\n * <p>\n * no */", "Says a <b> in two lines."),
    ],
)
def test_what_says_nothing_is_no_description(mine: ModuleType, comment: str, said: str | None) -> None:
    assert mine.functions.describe(comment) == said


@pytest.mark.parametrize(
    ("licences", "name"),
    [
        ({"*": "Expat", "debian/*": "GPL-3+"}, "Expat"),
        ({"*": "GPL-2 or MIT"}, "GPL-2 or MIT"),
        ({"*": "Apache-2.0", "a.c": "BSD-3-clause and Expat"}, "Apache-2.0"),
        ({"*": "Expat", "vendor/*": "LGPL-2.1+"}, None),
        ({"*": "Expat and GPL-2"}, None),
        ({"*": "Proprietary"}, None),
        ({}, None),
    ],
)
def test_every_part_must_be_under_a_permissive_licence(
    mine: ModuleType, licences: dict[str, str], name: str | None
) -> None:
    paragraphs = [f"Files: {files}\nCopyright: 2020 X\nLicense: {one}\n its text" for files, one in licences.items()]
    assert mine.licence("Format: machine-readable\n\n" + "\n\n".join(paragraphs) + "\n") == name


def test_a_package_gives_its_functions_but_not_those_of_tests_and_copies(mine: ModuleType, tmp_path: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    root = tmp_path / "root"
    for path in ("a/sum.go", "a/sum_test.go", "a/vendor/b/sum.go"):
        target = root / "usr/share/gocode/src" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(SOURCES["go"].replace("quickly", path))
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: golang-a-dev\nVersion: 1\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: a\n"
    )
    said = root / "usr/share/doc/golang-a-dev/copyright"
    said.parent.mkdir(parents=True)
    said.write_text("Format: x\n\nFiles: *\nCopyright: X\nLicense: Expat\n")
    package = tmp_path / "golang-a-dev_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", root, package], check=True, capture_output=True)
    (row,) = mine.mine("go", package, "golang-a-dev")
    assert (row["doc"], row["lang"], row["pkg"], row["lic"]) == (
        "Sum returns the sum of a and b, a/sum.go.", "go", "golang-a-dev", "Expat",
    )  # fmt: skip
    order = random.Random(0)
    assert len(list(mine.functions.of_folder(root, "go", order=order))) == 1


@pytest.mark.parametrize(
    "name", ["golang-github-go-git-go-git-dev", "libcommons-collections4-java", "python3-matplotlib"]
)
def test_what_is_measured_on_is_held_out(mine: ModuleType, name: str) -> None:
    archive = type(
        "Archive", (), {"packages": lambda _: [{"Package": name, "Size": "1"}, {"Package": "ruby-a", "Size": "1"}]}
    )
    found = mine.projects(archive())
    assert [names for names in found.values() if names] == [["ruby-a"]]


def test_what_is_installed_and_in_no_archive_is_passed_over(mine: ModuleType) -> None:
    archive = type("Archive", (), {"packages": lambda _: [{"Package": "php-b"}, {"Package": "ruby-a", "Size": "1"}]})
    assert [names for names in mine.projects(archive()).values() if names] == [["ruby-a"]]
