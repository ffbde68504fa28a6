"""Has the native kernels compiled when the package is built; pyproject.toml says everything else.

`python setup.py build_ext --inplace` compiles them anew in a clone, `pip install -e .` does too.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = Path("symrnn", "native")
# By its path: importing symrnn would take torch, which a build does without.
building = runpy.run_path(str(NATIVE / "building.py"))


class build_kernels(build_ext):
    """Not an extension module of Python's: a plain library, which may also fail to be built."""

    def run(self) -> None:
        building["build"](self._folder())

    def _folder(self) -> Path:
        return NATIVE if self.inplace else Path(self.build_lib) / NATIVE

    def get_outputs(self) -> list[str]:
        made = [self._folder() / building[name] for name in ("LIBRARY", "CALLS", "REASON")]
        return [str(path) for path in made if path.exists()]

    def get_output_mapping(self) -> dict[str, str]:
        """Where an editable install finds what would otherwise lie in the build folder."""
        if not self.inplace:
            return {}
        return {os.path.join(self.build_lib, path): path for path in self.get_outputs()}


class any_python_wheel(bdist_wheel):
    """A wheel for any Python: with kernels on the platform they are for, without on any."""

    def get_tag(self) -> tuple[str, str, str]:
        # Asked for when the build is done; this also sets Root-Is-Purelib in the wheel.
        self.root_is_pure = not Path(self.bdist_dir, NATIVE, building["LIBRARY"]).exists()
        return "py3", "none", super().get_tag()[2]


def here(paths: list[Path]) -> list[str]:
    """Relative to this file, as setuptools wants them."""
    return [(NATIVE / path.name).as_posix() for path in paths]


setup(
    # Named for what setuptools makes of it: a wheel of one platform.
    ext_modules=[
        Extension("symrnn.native._kernels", sources=here(building["sources"]()), optional=True)
    ],
    cmdclass={"build_ext": build_kernels, "bdist_wheel": any_python_wheel},
)
