"""Compiles the kernels (src/udever/model/kernels/) with the package where there is a GCC; without, udever is slower."""

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = Path("src/udever/model/kernels")
COMPILE = ("-O3", "-fopenmp", "-fPIC", "-fno-math-errno", "-c")
AVX512 = ("-march=x86-64-v4", "-mprefer-vector-width=512", "-DLANES=16")
BUILDS = {
    "avx512_bf16": (*AVX512, "-mavx512bf16"),
    "avx512": AVX512,
    "avx2": ("-march=x86-64-v3", "-DLANES=8"),
}
"""By the names that native.py looks for; the CPU in use is chosen when the package is, so a wheel serves them all."""


class KernelsHook(BuildHookInterface):
    """Compiles before the wheel, or the editable install, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Leave the libraries by their source, where an editable install finds them, and put them into the wheel."""
        compiler = shutil.which("gcc")
        if sys.platform != "linux" or platform.machine() != "x86_64" or compiler is None:
            self.app.display_warning("udever: no GCC for Linux on x86-64 here, so no kernels: embedding will be slower")
            return
        try:
            built = [compile_kernels(Path(self.root) / KERNELS, compiler, name) for name in BUILDS]
        except (subprocess.CalledProcessError, OSError) as error:
            said = error.stderr if isinstance(error, subprocess.CalledProcessError) else error
            self.app.display_warning(f"udever: the kernels do not compile, so embedding will be slower\n{said}")
            return
        build_data["artifacts"] += [f"/{library.relative_to(self.root)}" for library in built]
        build_data |= {"pure_python": False, "tag": "py3-none-linux_x86_64"}


def compile_kernels(folder: Path, compiler: str, name: str) -> Path:
    """One build of the kernels, beside their source; moved there when it is whole.

    It is not linked with an OpenMP library: it takes PyTorch's, whatever that is called, for two of them in a process
    would fight over the cores.
    """
    flags = [*COMPILE, *BUILDS[name], f'-DSOURCE="{source_hash(folder)}"']
    library = folder / f"{name}.so"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        objects = []
        for source in folder.glob("*.c"):
            objects.append(str(Path(scratch) / f"{source.stem}.o"))
            _run(compiler, *flags, str(source), "-o", objects[-1])
        part = Path(scratch) / library.name
        _run(compiler, "-shared", *objects, "-o", str(part))
        part.replace(library)
    return library


def source_hash(folder: Path) -> str:
    """Of all that is compiled; native.py computes the same."""
    digest = hashlib.sha256()
    for source in sorted([*folder.glob("*.c"), *folder.glob("*.h")]):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
