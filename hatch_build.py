"""Builds the kernels (src/udever/model/kernels.c) with the package, where there is a GCC; without one it works, slower."""

import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODEL = Path("src/udever/model")
FLAGS = ("-O3", "-fopenmp", "-fPIC", "-shared", "-fno-math-errno")
AVX512 = ("-march=x86-64-v4", "-mprefer-vector-width=512", "-DLANES=16")
BUILDS = {
    "avx512_bf16": (*AVX512, "-mavx512bf16"),
    "avx512": AVX512,
    "avx2": ("-march=x86-64-v3", "-DLANES=8"),
}
"""By what native.py looks for: PyTorch's name of what the CPU can do."""


class KernelsHook(BuildHookInterface):
    """Compiles before the wheel (or the editable install) is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Leave the libraries beside their source, where an editable install finds them, and put them into the wheel."""
        compiler = shutil.which("gcc") or shutil.which("cc")
        if sys.platform != "linux" or platform.machine() != "x86_64" or compiler is None:
            self.app.display_warning("udever: no GCC for x86-64 Linux here, so no compiled kernels: embedding is slower")
            return
        model = Path(self.root) / MODEL
        try:
            built = [compile_kernels(model, compiler, name) for name in BUILDS]
        except (subprocess.CalledProcessError, OSError) as error:
            said = getattr(error, "stderr", None) or str(error)
            self.app.display_warning(f"udever: the kernels did not compile, so embedding is slower\n{said}")
            return
        build_data["artifacts"] += [f"/{path.relative_to(self.root)}" for path in built]
        build_data["pure_python"] = False
        build_data["tag"] = "py3-none-linux_x86_64"


def compile_kernels(model: Path, compiler: str, name: str) -> Path:
    """One build of kernels.c, beside it; moved there when it is whole."""
    source, library = model / "kernels.c", model / f"_kernels_{name}.so"
    source_hash = hashlib.sha256(source.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(dir=model) as folder:
        part = Path(folder) / library.name
        command = [compiler, *FLAGS, *BUILDS[name], f'-DSOURCE="{source_hash}"', str(source), "-o", str(part), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True)
        part.replace(library)
    return library
