"""What an install compiles, and that it works without a compiler."""

import importlib.util
import shutil
import stat
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from udever.model import native

ROOT = Path(__file__).parents[1]


@pytest.fixture
def hatch_build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path, hatch_build: ModuleType) -> Path:
    """A folder with the kernels' source where the hook looks for it."""
    folder = tmp_path / "checkout"
    shutil.copytree(native.KERNELS, folder / hatch_build.KERNELS, ignore=shutil.ignore_patterns("*.so"))
    return folder


class App:
    """What the hook says to the person who installs."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


def run_hook(hatch_build: ModuleType, checkout: Path) -> tuple[dict[str, Any], list[str]]:
    app, build_data = App(), {"artifacts": [], "pure_python": True}
    hook = hatch_build.KernelsHook(str(checkout), {}, None, None, str(checkout / "dist"), "wheel", app)
    hook.initialize("standard", build_data)
    return build_data, app.warnings


def left_in(folder: Path) -> set[str]:
    """The kinds of files; a folder is of the kind ""."""
    return {path.suffix for path in folder.iterdir()}


@pytest.mark.skipif(shutil.which("gcc") is None, reason="GCC is not installed here")
def test_a_wheel_has_a_build_for_each_kind_of_cpu(hatch_build: ModuleType, checkout: Path) -> None:
    build_data, warnings = run_hook(hatch_build, checkout)
    assert not warnings
    assert build_data["tag"] == "py3-none-linux_x86_64"
    assert not build_data["pure_python"]
    libraries = [checkout / artifact.lstrip("/") for artifact in build_data["artifacts"]]
    assert {library.stem for library in libraries} == hatch_build.BUILDS.keys()
    name = native.library_name()
    if name is not None:
        assert native.open_library(checkout / hatch_build.KERNELS / f"{name}.so") is not None
    assert left_in(checkout / hatch_build.KERNELS) == {".c", ".h", ".so"}


def test_this_install_has_them() -> None:
    """What `make setup` made; without it every other test passes, only slower."""
    if native.library_name() is None:
        pytest.skip("this CPU has neither AVX2 nor AVX-512")
    if native.kernels() is None and shutil.which("gcc") is None:
        pytest.skip("GCC is not installed here")
    assert native.kernels() is not None, "the kernels are newer than their build: run make setup"


def test_without_a_compiler_it_is_a_package_of_python(
    hatch_build: ModuleType, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    build_data, warnings = run_hook(hatch_build, checkout)
    assert build_data == {"artifacts": [], "pure_python": True}
    assert "no GCC" in warnings[0]


def test_a_compiler_that_cannot_is_no_error(
    hatch_build: ModuleType, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "gcc"
    compiler.write_text("#!/bin/sh\necho 'unrecognized command-line option' >&2\nexit 1\n")
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(shutil, "which", lambda _: str(compiler))
    build_data, warnings = run_hook(hatch_build, checkout)
    assert build_data == {"artifacts": [], "pure_python": True}
    assert "unrecognized command-line option" in warnings[0]
    assert left_in(checkout / hatch_build.KERNELS) == {".c", ".h"}
