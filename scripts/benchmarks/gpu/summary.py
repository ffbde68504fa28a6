"""What scripts/benchmarks/gpu/run.py found, as tables: the failing things first, then the goals.

python scripts/benchmarks/gpu/summary.py runs/gpu/results.jsonl
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from goals import GOALS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report import header, make_parser, table

Records = list[dict[str, Any]]

_LAYER = re.compile(r"_l\d+(_reverse)?")  # in the names of parameters


def read(path: Path) -> Records:
    """All whole lines of a file; of a case the last one, which says how it ended."""
    found: dict[Any, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            one = json.loads(line)
        except ValueError:  # the last one, where a process was killed
            continue
        found[one["part"], one["case"], one.get("command", False)] = one
    for one in found.values():
        if one["words"] == "begun":
            one |= {"ok": False, "words": "the process ended meanwhile"}
    return list(found.values())


Goal = tuple[str, float, float | None, bool | None]
"""What is wanted, the number that is, the one that was found, and whether that is enough; the last
two None where nothing was measured."""


def goals(records: Records) -> list[Goal]:
    """Of each in a CUDA graph and in plain calls."""
    by_name = {one["case"]: one for one in records if one.get("what") == "layer" and one["ok"]}
    rows: list[Goal] = []
    for setting, wanted in GOALS.items():
        ratios = by_name.get(setting.name, {}).get("ratios", {})
        for way, words in (("times", "graphs"), ("plain_calls", "plain calls")):
            found = ratios.get(way)
            met = None if found is None else found >= wanted
            rows.append((f"{setting.name}, {words}", wanted, found, met))
    return rows


def slower(records: Records) -> list[tuple[str, float]]:
    """The layers that nn.LSTM runs faster, in graphs, and the ratio: `auto` must not take them."""
    found = [
        (one["case"], one["ratios"]["times"])
        for one in records
        if one.get("what") == "layer" and one.get("ratios")
    ]
    return [(name, ratio) for name, ratio in found if ratio < 1]


def failures(records: Records) -> Records:
    return [one for one in records if one["ok"] is False]


def counted(records: Iterable[dict[str, Any]]) -> str:
    oks = [one["ok"] for one in records if not (one.get("command") and one["ok"])]
    return f"{oks.count(True)} ok, {oks.count(False)} failed, {oks.count(None)} skipped"


def short(records: Records) -> str:
    """For the end of the console's words."""
    answered = any(one["part"] == "goals" for one in records)
    lines = [
        f"{_met(met):12} {what}: at least {wanted:.1f}, found {_number(number, '.2f') or '-'}"
        for what, wanted, number, met in (goals(records) if answered else ())
    ]
    bad = failures(records)
    lines += ["", f"{len(bad)} failed" if bad else "nothing failed"]
    return "\n".join(
        [*lines, *(f"  {one['part']}: {one['case']}: {one['words'][:300]}" for one in bad[:15])]
    )


def markdown(records: Records) -> str:
    """The whole report."""
    bad = [[one["part"], one["case"], _cell(one["words"])] for one in failures(records)]
    goal_rows = [
        [what, f"{wanted:.1f}", _number(number, ".2f"), _met(met)]
        for what, wanted, number, met in goals(records)
    ]
    made = next((one["machine"] for one in records if "machine" in one), {})
    blocks = ["# The kernels on a GPU", *([header(made=made)] if made else [])]
    blocks += ["## Failed", table(["part", "case", "words"], bad) if bad else "Nothing."]
    head = ["nn.LSTM / fused", "at least", "found", ""]
    blocks += ["## Goals", table(head, goal_rows), "## Parts", _parts(records)]
    for title, write in _TABLES.items():
        blocks += write(records, title)
    return "\n\n".join(blocks) + "\n"


def _parts(records: Records) -> str:
    rows = []
    for part in dict.fromkeys(one["part"] for one in records):
        of = [one for one in records if one["part"] == part]
        commands = [one for one in of if one.get("command")]
        seconds = sum(one.get("seconds", 0.0) for one in commands or of)
        words = "; ".join(_cell(one["words"]) for one in commands)
        rows.append([part, counted(of), f"{seconds:.0f}", words])
    return table(["part", "cases", "seconds", "words"], rows)


def _errors(records: Records, title: str) -> list[str]:
    """The largest error of each quantity, by kind of numbers."""
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    for one in records:
        for name, error in one.get("errors", {}).items():
            key = one["kind"], _LAYER.sub("", name)
            # What is no number is worst of all.
            if key not in worst or not float(error) <= worst[key][0]:
                worst[key] = float(error), one["case"]
    if not worst:
        return []
    kinds = list(dict.fromkeys(kind for kind, _ in worst))
    names = list(dict.fromkeys(name for _, name in worst))
    rows = [
        [name, *(_number(worst.get((kind, name), (None,))[0], ".1e") for kind in kinds)]
        for name in names
    ]
    return [f"## {title}", table(["‖found − exact‖ / ‖exact‖", *kinds], rows)]


def _micro(records: Records, title: str) -> list[str]:
    rows = [
        [one["case"], f"{one['value']:.4g}", one["unit"]]
        for one in records
        if one.get("what") == "micro" and one["ok"]
    ]
    return [f"## {title}", table(["", "", "unit"], rows)] if rows else []


def _layers(records: Records, title: str) -> list[str]:
    peers = ["nn.LSTM", "vendor", "fused"]
    rows = []
    for one in records:
        for how in ("times", "plain_calls") if one.get("what") == "layer" else ():
            if how not in one:
                continue
            of = one[how]
            name = one["case"] if how == "times" else f"the same by plain calls, {one['case']}"
            cells = [_number(of.get(peer, {}).get("us"), ".1f") for peer in peers]
            hows = "".join(of[peer]["how"][0] for peer in peers if peer in of)
            ratio = _number(one.get("ratios", {}).get(how), ".2f")
            rows.append([name, *cells, ratio, hows])
    words = "Median µs of a call. How: g by CUDA graphs, c by plain calls, in the columns' order."
    head = ["", *peers, "nn.LSTM / fused", "how"]
    ran = [f"{one['case']}: {one['words']}." for one in records if one.get("what") == "vendor"]
    return [f"## {title}", words, table(head, rows), *ran] if rows else []


def _slower(records: Records, title: str) -> list[str]:
    rows = [[name, f"{ratio:.2f}"] for name, ratio in slower(records)]
    return [f"## {title}", table(["", "nn.LSTM / fused"], rows)] if rows else []


def _steps(records: Records, title: str) -> list[str]:
    rows = []
    for one in records:
        for way in ("forward", "backward") if "floor" in one else ():
            step, least = one["step"][way], one["floor"][way]
            cells = [step, least["total"], step / least["total"]]
            cells += [least[term] for term in ("exchanges", "bytes", "product")]
            rest = _number(one["rest"] if way == "forward" else None, ".1f")
            rows.append([f"{one['case']}, {way}", *(f"{cell:.2f}" for cell in cells), rest])
    words = (
        "µs. A step is the difference of calls of 70 and of 35 steps by 35; the floor is counted "
        "(scripts/benchmarks/gpu/floor.py). The rest is what a forward call takes beside its "
        "steps: expanding and packing the weights, the launch and the loading."
    )
    head = ["", "step", "floor", "step / floor", "exchanges", "bytes", "product", "rest"]
    return [f"## {title}", words, table(head, rows)] if rows else []


def _others(records: Records, title: str) -> list[str]:
    rows = [
        [f"{one['case']}: {name}", f"{us['us'] if isinstance(us, dict) else us:.1f}"]
        for one in records
        if one.get("what") in ("training", "others", "two layers")
        for name, us in (one.get("us") or one.get("times") or {}).items()
    ]
    return [f"## {title}", table(["", "µs"], rows)] if rows else []


def _training(records: Records, title: str) -> list[str]:
    """Whole runs: how far they came in their time, and how good they were then."""
    rows = [
        [one["case"], *(_number(one.get(name), form) for name, form in _RUN.items())]
        for one in records
        if one.get("what") == "run"
    ]
    return [f"## {title}", table(["", *_RUN], rows)] if rows else []


_RUN = {"epochs": ".0f", "ms a step": ".2f", "best valid": ".2f", "test": ".2f"}

_TABLES = {
    "What a step is made of": _micro,
    "Largest errors against the loop in float64": _errors,
    "A layer": _layers,
    "Where nn.LSTM is faster": _slower,
    "A step of it": _steps,
    "Two layers, training steps, other kernels": _others,
    "Runs of lm.train": _training,
}


def _met(met: bool | None) -> str:
    return {True: "met", False: "MISSED", None: "not measured"}[met]


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(float(value), form)


def _cell(text: str) -> str:
    """Words that fit into a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("results", type=Path)
    print(markdown(read(parser.parse_args().results)))


if __name__ == "__main__":
    main()
