"""The networks' parameter counts beside those that the papers print.

    python scripts/tables/counts.py

The published numbers are those that tests/vision/test_counts.py holds ours against.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from report import ROOT, make_parser, table, write_report

from symrnn import count_parameters

TESTS = ROOT / "tests" / "vision" / "test_counts.py"


def published() -> ModuleType:
    """The module of the tests."""
    spec = importlib.util.spec_from_file_location("test_counts", TESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    options = make_parser(__doc__, "results/vision_counts.md").parse_args()
    tests = published()
    rows = []
    for source, name, arguments, printed in tests.ROWS:
        counts = count_parameters(tests.make(name, **arguments))
        made = ", ".join(f"{key} {value}" for key, value in arguments.items())
        rows.append(
            [
                name,
                made or "plain",
                f"{counts.training:,}",
                f"{counts.deployed:,}",
                tests.as_printed(counts.deployed, printed),
                printed,
                source,
            ]
        )
    header = ["", "with", "training", "deployed", "millions", "published", "source"]
    write_report(options.out, "Parameters of the image networks", [table(header, rows)])


if __name__ == "__main__":
    main()
