"""Two source trees in one run, interleaved: did a change make anything slower?

    python scripts/benchmarks/cpu.py --against ../before
    python scripts/benchmarks/backends.py --against ../before --cases 'GRU *' '*H = 64,*'

Each tree has a process of its own, which imports symrnn from there and stays alive; through a pipe
it is told which case to time next. Only one of the two works at a time, and in every round the
other one begins. A round is a block of calls (see timing.block); "now / before" is the median over
rounds of the ratio of the blocks' medians, beside it its quartiles. A case that looks faster or
slower (both quartiles on one side, the median off by more than 3 %) is timed once more at the end,
by new processes whose memory lies elsewhere, and called so if it looks so again, or if no time was
left for that, which is said; its figures are then those of both. The C library is asked to keep
freed memory. Outputs, or in training the input's gradients, are compared as well: "differs" says
that their norms do.

The other tree needs its native kernels: `python setup.py build_ext --inplace` there.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "h"}
NOTABLE = 0.03  # what a ratio has to differ from 1 by to be called faster or slower
LEAST_ROUNDS, SLOW = 5, 0.3  # three rounds are enough for calls of so many seconds
AGAIN = 0.2  # the share of the time that is for timing again what looks faster or slower


class Case(NamedTuple):
    """A call of one layer, by what every tree's public face has."""

    kind: str
    form: str
    backend: str
    size: int
    steps: int
    batch: int
    train: bool = False
    both: bool = False  # symmetric input weights too
    bf16: bool = False

    @property
    def name(self) -> str:
        form = f"{self.form} both" if self.both else self.form
        backend = f"{self.backend} bf16" if self.bf16 else self.backend
        way = "forward and backward" if self.train else "forward"
        shape = f"({self.steps}, {self.batch})"
        return f"{self.kind} {form}, {backend}, H = {self.size}, {shape}, {way}"


# ---- the processes -----------------------------------------------------------------------------


def work(tree: str, threads: int) -> None:
    """Time what standard input asks for, until it ends."""
    sys.path.insert(0, tree)
    import symrnn
    from symrnn import native
    from symrnn.training import keep_freed_memory, set_threads

    if not Path(symrnn.__file__).resolve().is_relative_to(tree):
        sys.exit(f"{tree} has no package symrnn: {symrnn.__file__} was imported")
    if not native.available():
        sys.exit(f"{tree}: {native.why_not()}")
    set_threads(threads)
    keep_freed_memory()
    peers: dict[Case, Any] = {}
    for line in sys.stdin:
        case = Case(*json.loads(line))
        answer: dict[str, Any]
        try:
            if case not in peers:
                peers.clear()
                peers[case] = make_peer(symrnn, case)
            answer = time_block(*peers[case])
            # A first call may have been slow, and a block is of as many calls as fit into 20 ms.
            peer, expected, norm = peers[case]
            peers[case] = peer, min(expected, *answer["times"]), norm
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


def make_peer(symrnn: Any, case: Case) -> Any:
    """The call of a case, how long it takes, and the norm of what it gives."""
    import torch
    from timing import Peer, lap

    torch.manual_seed(case.size)
    gates = GATES[case.kind] if case.both else ""
    layer = getattr(symrnn, f"Sym{case.kind}")(
        case.size, case.size, symm=case.form, symm_ih=gates, backend=case.backend
    )
    if case.bf16:
        layer.inference_dtype = torch.bfloat16
    x = torch.randn(case.steps, case.batch, case.size, requires_grad=case.train)
    ones = torch.ones(case.steps, case.batch, case.size)
    parameters = list(layer.parameters())

    def inference() -> Any:
        with torch.no_grad():
            return layer(x)[0]

    def training() -> None:
        layer(x)[0].backward(ones)

    def as_an_optimizer() -> None:
        x.grad = None
        with torch.no_grad():
            for parameter in parameters:
                parameter.grad = None
                parameter.add_(0)

    peer = Peer("", training, as_an_optimizer) if case.train else Peer("", inference)
    expected = min(lap(peer), lap(peer))
    return peer, expected, float((x.grad if case.train else inference()).norm())


def time_block(peer: Any, expected: float, norm: float) -> dict[str, Any]:
    from timing import block, settle

    times = block(peer, expected, 0.02)
    settle()  # lest this process's threads spin while the other one is timed
    return {"times": times, "norm": norm}


class Tree:
    """A process that times calls of one source tree."""

    def __init__(self, path: Path, threads: int) -> None:
        self.path = path
        environment = {**os.environ, "PYTHONPATH": str(path)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=path,
        )

    def ask(self, case: Case) -> dict[str, Any]:
        """Times of a block of calls, or {"error": why there are none}."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(case), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.path}: the process ended with status {self.process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found


@contextlib.contextmanager
def both_trees(now: Path, before: Path, threads: int) -> Iterator[list[Tree]]:
    trees = [Tree(now, threads), Tree(before, threads)]
    try:
        yield trees
    finally:
        for tree in trees:
            tree.process.kill()
            tree.process.wait()


# ---- the comparison ----------------------------------------------------------------------------


class Found:
    """What was measured of one case: the blocks' medians by round, now and before."""

    def __init__(self) -> None:
        self.medians: tuple[list[float], list[float]] = ([], [])
        self.words = ""

    def measure(self, case: Case, trees: list[Tree], seconds: float) -> None:
        end = time.perf_counter() + seconds
        done = 0
        norms = [0.0, 0.0]
        while not self.words and (done < self.least(done) or time.perf_counter() < end):
            for index in (done % 2, 1 - done % 2):
                answer = trees[index].ask(case)
                if "error" in answer:
                    self.words = f"{('now', 'before')[index]}: {answer['error'][:200]}"
                    self.medians = ([], [])
                    return
                self.medians[index].append(statistics.median(answer["times"]))
                norms[index] = answer["norm"]
            done += 1
        if not math.isclose(*norms, rel_tol=1e-4):
            self.words = "differs"

    def least(self, done: int) -> int:
        return 3 if done and self.medians[0][-1] > SLOW else LEAST_ROUNDS

    def ratios(self) -> tuple[float, float, float]:
        from timing import quartiles

        return quartiles([a / b for a, b in zip(*self.medians, strict=True)])

    def verdict(self) -> str:
        """ "faster", "slower" or ""."""
        low, middle, high = self.ratios()
        if low > 1 and middle > 1 + NOTABLE:
            return "slower"
        return "faster" if high < 1 and middle < 1 - NOTABLE else ""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that :func:`compare` reads."""
    group = parser.add_argument_group("comparing two source trees")
    group.add_argument(
        "--against",
        type=Path,
        metavar="TREE",
        help="time this tree's layers and those of another checkout, in turn, and nothing else",
    )
    group.add_argument("--cases", nargs="+", metavar="PATTERN", help="with * (all of them)")
    group.add_argument("--budget", type=float, default=300, help="seconds for all cases (300)")


def compare(cases: list[Case], options: argparse.Namespace, threads: int | None) -> None:
    """Time the cases in this tree and in ``options.against``, and write the table."""
    import torch
    from report import ROOT, explanation, table, write_report
    from tqdm import tqdm

    patterns = options.cases or ["*"]
    cases = [one for one in cases if any(fnmatch.fnmatchcase(one.name, p) for p in patterns)]
    if not cases:
        sys.exit(f"--cases: no case is like {' or '.join(patterns)}")
    if threads is not None:
        torch.set_num_threads(threads)
    of = ROOT, options.against.resolve(), torch.get_num_threads()
    end = time.perf_counter() + options.budget
    found: dict[Case, Found] = {}
    header = ["", "before, µs", "now, µs", "now / before", "quartiles", "rounds", ""]

    def row(case: Case) -> list[str]:
        one = found[case]
        if not all(one.medians):
            return [case.name, *[""] * 5, one.words]
        now, before = (1e6 * statistics.median(times) for times in one.medians)
        low, middle, high = one.ratios()
        words = ", ".join(filter(None, [verdicts.get(case, one.verdict()), one.words]))
        cells = [f"{before:,.1f}", f"{now:,.1f}", f"{middle:.3f}", f"{low:.3f} – {high:.3f}"]
        return [case.name, *cells, str(len(one.medians[0])), words]

    def measure(several: list[Case], until: float) -> None:
        with both_trees(*of) as trees:
            for index, case in enumerate(tqdm(several, disable=None, leave=False)):
                left = until - time.perf_counter()
                if left <= 0:
                    return
                one = found.setdefault(case, Found())
                one.measure(case, trees, left / (len(several) - index))
                tqdm.write("  ".join(row(case)))

    verdicts: dict[Case, str] = {}
    measure(cases, end - AGAIN * options.budget)
    first = {case: one for case, one in found.items() if all(one.medians) and one.verdict()}
    for case in first:
        found[case] = Found()
    measure(list(first), max(end, time.perf_counter() + 1))
    for case, one in first.items():
        again = found[case]
        if not all(again.medians):
            verdicts[case] = f"{one.verdict()}, timed once"
        else:
            verdicts[case] = one.verdict() if one.verdict() == again.verdict() else ""
        for times, more in zip(again.medians, one.medians, strict=True):
            times += more
    ratios = [one.ratios()[1] for one in found.values() if all(one.medians)]
    mean = statistics.geometric_mean(ratios) if ratios else math.nan
    means = [f"Geometric mean of {len(ratios)} ratios: {mean:.3f}."]
    for word in ("slower", "faster"):
        names = [case.name for case, verdict in verdicts.items() if verdict.startswith(word)]
        means.append(f"{word.capitalize()}: {'; '.join(names) or 'none'}.")
    if len(found) < len(cases):
        left_out = "; ".join(case.name for case in cases if case not in found)
        means.append(f"Not timed, as the budget of {options.budget:g} s was spent: {left_out}.")
    write_report(
        options.out,
        f"{revision(ROOT)} against {revision(of[1])}",
        [
            *explanation(__doc__),
            f"Now is {revision(ROOT)}, before is {revision(of[1])}.",
            "\n".join(f"- {line}" for line in means),
            table(header, [row(case) for case in found]),
        ],
    )


def revision(tree: Path) -> str:
    """The commit of a checkout, with "-dirty" where files were changed since."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or tree.name


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]))
