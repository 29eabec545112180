"""A folder appears whole, or not at all."""

from pathlib import Path

import pytest

from udever.engine.folders import is_free, whole_folder
from udever.errors import OptionError


def test_it_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "down"
    with whole_folder(target) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "file").write_text("x")
        (folder / "inner" / "file").chmod(0o600)
        assert not target.exists()
    assert (target / "inner" / "file").read_text() == "x"
    assert (target / "inner" / "file").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["down"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("replace", [False, True])
def test_nothing_is_left_of_a_block_that_raises(tmp_path: Path, error: type[BaseException], replace: bool) -> None:
    if replace:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "old").touch()
    before = sorted(tmp_path.rglob("*"))

    def fill() -> None:
        with whole_folder(tmp_path / "out", replace=replace) as folder:
            (folder / "half").touch()
            raise error

    with pytest.raises(error):
        fill()
    assert sorted(tmp_path.rglob("*")) == before


def test_what_is_there_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").touch()
    (tmp_path / "empty").mkdir()
    assert [is_free(tmp_path / name) for name in ("file", "full", "empty", "none")] == [False, False, True, True]
    for name, replace in (("file", False), ("file", True), ("full", False)):
        with pytest.raises(OptionError, match="already there"), whole_folder(tmp_path / name, replace=replace):
            pass
    for name, replace in (("empty", False), ("full", True)):
        with whole_folder(tmp_path / name, replace=replace) as folder:
            (folder / "new").touch()
        assert [path.name for path in (tmp_path / name).iterdir()] == ["new"]
    assert len(list(tmp_path.iterdir())) == 3


def test_a_relative_path_is_that_of_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with whole_folder(Path("out")) as folder:
        (folder / "file").touch()
        monkeypatch.chdir("/")
    assert (tmp_path / "out" / "file").exists()
