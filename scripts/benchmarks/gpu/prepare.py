"""The programs that run.py needs on a machine with a GPU, compiled ahead, where there is none.

    python scripts/benchmarks/gpu/prepare.py runs/gpu-prepared
    python scripts/benchmarks/gpu/run.py --prepared runs/gpu-prepared     # there

Writes the CUDA kernels into FOLDER/kernels, as symrnn.native.cuda caches them, and the
microbenchmarks as FOLDER/micro. What is there of other sources goes. Where what is prepared does
not load, run.py compiles it anew.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report import make_parser

from symrnn.native.building import NotBuiltError
from symrnn.native.cuda import building

MICRO = Path(__file__).with_name("micro.cu")


def build_micro(target: Path, architecture: str) -> None:
    """Compile micro.cu. architecture: "sm_90", or "native" for the GPU at hand.

    Raises NotBuiltError where there is no nvcc, or it fails; its words are on stderr.
    """
    command = [*building.nvcc(), "-std=c++17", "-O3", f"-arch={architecture}", str(MICRO)]
    if subprocess.run([*command, "-o", str(target)]).returncode:
        raise NotBuiltError(f"{MICRO.name} cannot be compiled")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--arch", type=int, default=90, metavar="N", help="of the GPU (90)")
    options = parser.parse_args(arguments)
    kernels = options.folder.resolve() / "kernels"
    os.environ["SYMRNN_CACHE"] = str(kernels)
    try:
        print(building.build([options.arch]))
        for other in kernels.iterdir():
            if other.name != building.fingerprint():
                shutil.rmtree(other)
        build_micro(options.folder / "micro", f"sm_{options.arch}")
    except NotBuiltError as error:
        print(f"prepare.py: {error}", file=sys.stderr)
        return 2
    print(options.folder / "micro")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
