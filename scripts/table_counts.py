"""The networks' parameter counts beside those that the papers print.

    python scripts/table_counts.py

The published numbers are those that tests/vision/test_counts.py holds ours against.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path
from types import ModuleType

from report import table, write_report

from symrnn import count_parameters

TESTS = Path(__file__).parents[1] / "tests" / "vision" / "test_counts.py"


def published() -> ModuleType:
    """The module of the tests."""
    spec = importlib.util.spec_from_file_location("test_counts", TESTS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/vision_counts.md"))
    options = parser.parse_args()
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
