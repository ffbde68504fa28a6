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


def described(arguments: dict[str, object]) -> str:
    """What a network is made with, in a line."""
    return ", ".join(f"{key} {value}" for key, value in arguments.items()) or "plain"


def main() -> None:
    options = make_parser(__doc__, "results/vision_counts.md").parse_args()
    tests = published()
    rows = []
    for source, name, arguments, printed in tests.ROWS:
        counts = count_parameters(tests.make(name, **arguments))
        rows.append(
            [
                name,
                described(arguments),
                f"{counts.training:,}",
                f"{counts.deployed:,}",
                tests.as_printed(counts.deployed, printed),
                printed,
                source,
            ]
        )
    header = ["", "with", "training", "deployed", "millions", "published", "source"]
    others = []
    for source, name, arguments, printed, counted, how in tests.OTHERWISE:
        model = tests.make(name, **arguments)
        count = count_parameters(model).training
        row = [name, described(arguments), f"{count:,}", tests.as_printed(count, printed), printed]
        others.append([*row, f"{how}: {counted(model):,}", source])
    body = [
        "Parameters in training and deployed equal what the papers print, to the last digit:",
        table(header, rows),
        f"but for {len(others)}, which are met if something else is counted:",
        table(["", "with", "training", "millions", "published", "met", "source"], others),
    ]
    write_report(options.out, "Parameters of the image networks", body)


if __name__ == "__main__":
    main()
