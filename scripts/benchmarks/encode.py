"""Time and peak memory to encode a large text made by the built-in generator.

    python scripts/benchmarks/encode.py

Writes the text to a folder that is removed at the end (about twice its size is needed there), then
encodes it in a process of its own by ``python -m data.encode``, as a user would.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import ROOT, explanation, make_parser, table, write_report

ENCODE = """
import pathlib, re, sys, time
import torch  # what memory is compared with: a process that has torch loaded

def peak():  # in kB; getrusage would count what the parent had in use
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

base = peak()
import data
start = time.perf_counter()
texts = {split: f"{sys.argv[1]}/{split}.txt" for split in ("train", "valid", "test")}
corpus = data.encode_corpus(sys.argv[2], **texts, progress=False)
print(time.perf_counter() - start, base, peak(), corpus.train.tokens, len(corpus.codec))
"""


def main() -> None:
    parser = make_parser(__doc__, "results/encode.md")
    parser.add_argument("--tokens", type=int, default=165_000_000, help="(about 1 GB)")
    parser.add_argument("--folder", type=Path, help="where to work (a temporary one)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder)).resolve()
    try:
        start = time.perf_counter()
        for split, count in (("train", options.tokens), ("valid", 10_000), ("test", 10_000)):
            out = str(folder / f"{split}.txt")
            command = [sys.executable, "-m", "data.grammar", "--tokens", str(count), "--out", out]
            subprocess.run(command, check=True, cwd=ROOT)
        made = time.perf_counter() - start
        size = os.path.getsize(folder / "train.txt")
        command = [sys.executable, "-c", ENCODE, str(folder), str(folder / "encoded")]
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=ROOT
        ).stdout
        seconds, base, peak, tokens, types = (float(part) for part in output.split())
        stored = os.path.getsize(folder / "encoded" / "train.ids")
    finally:
        shutil.rmtree(folder)
    rows = [
        ["text, bytes", f"{size:,}"],
        ["tokens", f"{tokens:,.0f}"],
        ["types", f"{types:,.0f}"],
        ["seconds to generate the text", f"{made:.1f}"],
        ["seconds to encode it", f"{seconds:.1f}"],
        ["million tokens a second", f"{tokens / seconds / 1e6:.2f}"],
        ["encoded, bytes", f"{stored:,}"],
        ["peak memory of the encoding process, MiB", f"{peak / 1024:.0f}"],
        ["of that, once torch was imported, MiB", f"{base / 1024:.0f}"],
        ["so encoding took, MiB", f"{(peak - base) / 1024:.0f}"],
    ]
    write_report(
        options.out,
        "Encoding a large text",
        [*explanation(__doc__), table(["", ""], rows)],
    )


if __name__ == "__main__":
    main()
