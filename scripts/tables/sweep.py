"""The table of a sweep as a report, with how it was made.

    python scripts/tables/sweep.py runs/ptb --out results/ptb_seeds.md --title 'Five seeds'
    python scripts/tables/sweep.py results/ptb_seeds.json runs/more --out results/ptb_seeds.md

Reads the table.json that python -m lm.sweep writes; trains nothing. Several are merged: parts of
one sweep whose seeds or forms were shared out, over machines or over time. One may be the .json of
an earlier report.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from report import make_parser, write_report

from lm.sweep_results import made_with, markdown, merged
from symrnn.files import UserError


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument(
        "sweeps", type=Path, nargs="+", metavar="SWEEP", help="the folder of a sweep, or a .json"
    )
    parser.add_argument("--out", type=Path, required=True, help="a .md; a .json stands beside it")
    parser.add_argument("--title", default="Perplexity over seeds", help="(Perplexity over seeds)")
    parser.add_argument("--note", action="append", default=[], help="a paragraph above the table")
    options = parser.parse_args()
    tables = []
    for sweep in options.sweeps:
        table = sweep if sweep.suffix == ".json" else sweep / "table.json"
        if not table.exists():
            how = "" if table is sweep else f": python -m lm.sweep --table --out {sweep}"
            parser.error(f"there is no {table}{how}")
        tables.append(portable(json.loads(table.read_text())))
    try:
        results = merged(tables) if len(tables) > 1 else tables[0]
    except UserError as error:
        parser.error(str(error))
    words, *shown = markdown(results)
    runs = f"The runs:\n\n{made_with(results)}"
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    write_report(options.out, options.title, [runs, words, *options.note, *shown])


def portable(value: Any) -> Any:
    """JSON whose absolute paths are names: where they lay on this machine means nothing elsewhere.

    Those within commands too.
    """
    if isinstance(value, dict):
        return {name: portable(one) for name, one in value.items()}
    if isinstance(value, list):
        return [portable(one) for one in value]
    if not isinstance(value, str):
        return value
    if value.startswith("/"):
        return Path(value).name
    return re.sub(r"(?<=[ =])/[^ ]*/(?=[^ /]+)", "", value)


if __name__ == "__main__":
    main()
