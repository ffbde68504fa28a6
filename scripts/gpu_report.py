"""What scripts/gpu_check.py found, as tables: the failing things first, then the goals."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import gpu_cases
from benchmarks.report import table
from gpu_bench import FLOOR_GOAL, GOAL_KINDS, GOALS, TRAIN_GOAL, VARIANTS

Found = dict[str, Any]
"""about: of the machine.  command.  parts: by name {"seconds", "words", "cases": [records]}."""


def cases_of(found: Found, part: str) -> list[dict[str, Any]]:
    return list(found["parts"].get(part, {}).get("cases", []))


def failures(found: Found) -> list[tuple[str, str, str]]:
    """Part, case and words of all that failed."""
    return [
        (part, one["case"], one.get("words", ""))
        for part in found["parts"]
        for one in cases_of(found, part)
        if one["ok"] is False
    ]


def goals(found: Found) -> list[tuple[str, float, float | None, bool | None]]:
    """What is wanted, the number that is, the one that was found, and whether that is enough.

    None where nothing was measured.
    """
    rows: list[tuple[str, float, float | None, bool | None]] = []
    bench = {
        (one["side"], one["batch"], one["steps"], one["kind"], one["train"]): one
        for one in cases_of(found, "bench")
        if one["ok"] and "times" in one
    }
    for (side, batch, steps), wanted in GOALS.items():
        for kind in GOAL_KINDS:
            of = f"H={side} B={batch} T={steps} {kind}"
            for train, least in zip((False, True), wanted, strict=True):
                one = bench.get((side, batch, steps, kind, train), {})
                what = "forward and backward" if train else "forward"
                ratio = one.get("ratio")
                met = None if ratio is None else ratio >= least
                rows.append((f"nn.LSTM / fused, {of}, {what}: at least", least, ratio, met))
            one = bench.get((side, batch, steps, kind, False), {})
            step, least = one.get("step"), one.get("floor")
            over = step / least if step and least else None
            met = None if over is None else over <= FLOOR_GOAL
            rows.append((f"step / floor, {of}, forward: at most", FLOOR_GOAL, over, met))
    speed = {
        one["variant"]: one["tokens_per_second"]
        for one in cases_of(found, "train")
        if one["ok"] and "variant" in one
    }
    ratio = speed["fused"] / speed["nn.LSTM"] if {"fused", "nn.LSTM"} <= speed.keys() else None
    met = None if ratio is None else ratio >= TRAIN_GOAL
    rows.append(("nn.LSTM / fused, a training epoch: at least", TRAIN_GOAL, ratio, met))
    return rows


def counted(cases: Iterable[dict[str, Any]]) -> tuple[int, int, int]:
    """How many passed, failed and were skipped."""
    oks = [one["ok"] for one in cases]
    return oks.count(True), oks.count(False), oks.count(None)


def short_table(found: Found) -> str:
    """For the end of the console's words."""
    lines = [f"{'part':10} {'ok':>4} {'failed':>7} {'skipped':>8} {'seconds':>8}"]
    for name, part in found["parts"].items():
        ok, failed, skipped = counted(cases_of(found, name))
        lines.append(f"{name:10} {ok:4} {failed:7} {skipped:8} {part['seconds']:8.0f}")
        if part["words"]:
            lines.append(f"           {part['words']}")
    lines.append("")
    for what, wanted, number, met in goals(found):
        lines.append(f"{_met(met):12} {what} {wanted:.1f}: {_number(number, '.2f')}")
    bad = failures(found)
    lines += ["", f"{len(bad)} failed" if bad else "nothing failed"]
    lines += [f"  {part}: {case}: {words[:300]}" for part, case, words in bad[:15]]
    return "\n".join(lines)


def markdown(found: Found) -> str:
    """The whole report."""
    about = found["about"]
    made = [
        f"- command: `{found['command']}`",
        f"- machine: {about.get('gpu') or 'no GPU'}, driver {about.get('driver') or 'unknown'}; "
        f"{about.get('cpu', '')}, {about.get('cores', '')} cores",
        f"- versions: Python {about.get('python')}, torch {about.get('torch')}, CUDA "
        f"{about.get('cuda')}, commit {about.get('commit') or 'unknown'}",
        f"- date: {str(about.get('date', ''))[:10]}",
    ]
    blocks = ["# The kernels on a GPU", "\n".join(made), *_failed(found), *_goals(found)]
    for part, write in _WRITERS.items():
        if part in found["parts"]:
            blocks += [f"## {part}", *_words(found, part), *write(found)]
    return "\n\n".join(blocks) + "\n"


def _failed(found: Found) -> list[str]:
    bad = failures(found)
    if not bad:
        return ["## Failed", "Nothing."]
    rows = [[_cell(text) for text in one] for one in bad]
    return ["## Failed", table(["part", "case", "words"], rows)]


def _goals(found: Found) -> list[str]:
    rows = [
        [what, f"{wanted:.1f}", _number(number, ".2f"), _met(met)]
        for what, wanted, number, met in goals(found)
    ]
    return ["## Goals", table(["", "goal", "found", ""], rows)]


def _words(found: Found, part: str) -> list[str]:
    """How many cases there were, and what was skipped and why."""
    ok, failed, skipped = counted(cases_of(found, part))
    seconds = found["parts"][part]["seconds"]
    words = [f"{ok} passed, {failed} failed, {skipped} were skipped; {seconds:.0f} s."]
    if found["parts"][part]["words"]:
        words.append(found["parts"][part]["words"])
    left: dict[str, list[str]] = {}
    for one in cases_of(found, part):
        if one["ok"] is None:
            left.setdefault(one.get("words", "skipped"), []).append(one["case"])
    for why, names in left.items():
        several = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        words.append(f"{_cell(why)}: {several}.")
    return words


def _simple(part: str) -> Any:
    """A row for each case, and what it says."""

    def write(found: Found) -> list[str]:
        rows = [
            [
                one["case"],
                _outcome(one),
                _cell(one.get("words", "")),
                _number(one.get("took"), ".1f"),
            ]
            for one in cases_of(found, part)
            if one["ok"] is not None
        ]
        texts = [
            f"```\n{one['text'].rstrip()}\n```" for one in cases_of(found, part) if one.get("text")
        ]
        return [table(["case", "", "words", "seconds"], rows), *texts] if rows else texts

    return write


_LAYER = re.compile(r"_l\d+(_reverse)?")  # in the names of parameters


def _correct(found: Found) -> list[str]:
    cases = [one for one in cases_of(found, "correct") if one.get("errors")]
    kinds = [kind for kind in gpu_cases.KINDS if any(one.get("kind") == kind for one in cases)]
    worst: dict[tuple[str, str], tuple[float, str]] = {}
    for one in cases:
        for name, error in one["errors"].items():
            error = float(error)
            key = one["kind"], _LAYER.sub("", name)
            # What is no number is worst of all.
            if key not in worst or not error <= worst[key][0]:
                worst[key] = error, one["case"]
    names = list(dict.fromkeys(name for _, name in worst))
    rows = [
        [name, *(_number(worst.get((kind, name), (None,))[0], ".1e") for kind in kinds)]
        for name in names
    ]
    limits = [
        [f"*limit of {of}*", *(f"{gpu_cases.LIMITS[kind][k]:.0e}" for kind in kinds)]
        for k, of in enumerate(("results", "gradients"))
    ]
    blocks = []
    if rows:
        words = (
            "The largest ‖found − exact‖ / ‖exact‖ of all cases, exact being the loop in float64."
        )
        blocks = [words, table(["", *kinds], [*rows, *limits])]
        top = [
            [kind, name, _number(error, ".1e"), case]
            for kind in kinds
            for (of, name), (error, case) in worst.items()
            if of == kind and error == max(e for (k, _), (e, _) in worst.items() if k == kind)
        ]
        blocks.append(table(["kind", "largest of", "error", "case"], top))
    elsewhere = [one["case"] for one in cases if one.get("path") == "vendor"]
    if elsewhere:
        blocks.append(f"On PyTorch's operator, as they do not fit: {', '.join(elsewhere)}.")
    return blocks


def _bench(found: Found) -> list[str]:
    cases = [one for one in cases_of(found, "bench") if "times" in one]
    if not cases:
        return []
    words = (
        "Median µs of a call. A step is the operator's time by T, and so has its share of the "
        "input's product; the floor is counted (scripts/gpu_floor.py), the ratio is nn.LSTM's "
        "time by fused's. How: g by CUDA graphs, c by plain calls, in the order of the columns."
    )
    peers = ["nn.LSTM", "vendor", "fused", "operator"]
    rows = []
    for one in cases:
        times = one["times"]
        step, least = one.get("step"), one.get("floor")
        rows.append(
            [
                one["case"],
                *(_number(times.get(name, {}).get("median"), ".1f") for name in peers),
                _number(one.get("ratio"), ".2f"),
                _number(step, ".2f"),
                _number(least, ".2f"),
                _number(step / least if step and least else None, ".2f"),
                "".join(times[name]["how"][0] for name in peers if name in times),
            ]
        )
    header = ["", *peers, "ratio", "step", "floor", "step / floor", "how"]
    blocks = [words, table(header, rows)]
    packing = [
        [one["case"], _number(one["expand"], ".1f"), _number(one["pack"], ".1f")]
        for one in cases
        if one.get("pack")
    ]
    if packing:
        blocks += [
            "Of a fused call, µs for making matrices of the free numbers, and for packing these:",
            table(["", "expand", "pack"], packing),
        ]
    eager = [
        [one["case"], *(_number(one["plain_calls"].get(name), ".1f") for name in peers)]
        for one in cases
        if one.get("plain_calls")
    ]
    if eager:
        blocks += ["By plain calls, one after another, µs:", table(["", *peers], eager)]
    others = [
        [name, _number(time["median"], ".1f")]
        for one in cases_of(found, "bench")
        for name, time in one.get("peers", {}).items()
    ]
    if others:
        blocks += ["Other kernels, H=1024 B=20 T=35, forward, µs:", table(["", "µs"], others)]
    return blocks


def _profile(found: Found) -> list[str]:
    rows = []
    for one in cases_of(found, "profile"):
        for way in ("forth", "back"):
            if way not in one:
                continue
            step, least = one[way]["step"], one[way]["floor"]
            total = least["exchanges"] + least["bytes"] + least["product"]
            rows.append(
                [
                    f"{one['case']}, {way}",
                    *(_number(value, ".2f") for value in (step, total, step / total)),
                    *(_number(least[term], ".2f") for term in ("exchanges", "bytes", "product")),
                    _number(one[way]["rest"], ".1f"),
                    _number(one["times"][f"{way} 35"], ".1f"),
                ]
            )
    if not rows:
        return []
    words = (
        "µs. A step is the difference of calls of 70 and of 35 steps by 35; the rest is what a "
        "call takes beside its steps, the launch and the loading of the weights among it."
    )
    header = [
        "",
        "step",
        "floor",
        "step / floor",
        "exchanges",
        "bytes",
        "product",
        "rest",
        "T = 35",
    ]
    return [words, table(header, rows), *_texts(found, "profile")]


def _texts(found: Found, part: str) -> list[str]:
    return [f"```\n{one['text'].rstrip()}\n```" for one in cases_of(found, part) if one.get("text")]


def _train(found: Found) -> list[str]:
    cases = {one["variant"]: one for one in cases_of(found, "train") if "variant" in one}
    if not cases:
        return []
    first = cases.get("nn.LSTM")
    rows = []
    for name in VARIANTS:
        one = cases.get(name)
        if one is None:
            continue
        ratio = one["tokens_per_second"] / first["tokens_per_second"] if first else None
        rows.append(
            [
                name,
                f"{one['steps']} of {one['of']}",
                _number(one["seconds"], ".1f"),
                _number(1e3 * one["step"], ".2f"),
                _number(one["tokens_per_second"], ".0f"),
                _number(ratio, ".2f"),
                _number(one["perplexity"], ".1f"),
            ]
        )
    some = next(iter(cases.values()))
    words = (
        f"One epoch of the {some['size']} model, float32, products of the recurrent layers in "
        f'"{some["rounding"]}", or as many of its steps as there was time for; the perplexity is '
        "of the validation text after them."
    )
    header = ["", "steps", "seconds", "ms a step", "tokens a second", "to nn.LSTM", "perplexity"]
    return [words, table(header, rows)]


_WRITERS = {
    "build": _simple("build"),
    "tests": _simple("tests"),
    "correct": _correct,
    "sanitize": _simple("sanitize"),
    "bench": _bench,
    "profile": _profile,
    "train": _train,
}


def _outcome(one: dict[str, Any]) -> str:
    return {True: "ok", False: "FAILED", None: "skipped"}[one["ok"]]


def _met(met: bool | None) -> str:
    return {True: "met", False: "MISSED", None: "not measured"}[met]


def _number(value: Any, form: str) -> str:
    return "" if value is None else format(float(value), form)


def _cell(text: str) -> str:
    """Words that fit into a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")
