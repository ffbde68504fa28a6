"""``python -m lm.sweep``: train over seeds, forms and other options, and make a table of it."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from data import DataError
from lm.sweep_plan import (
    PlannedRun,
    Resolver,
    Sweep,
    axes_of,
    check_common,
    held,
    is_sweep,
    seed_list,
)
from lm.sweep_processes import Process
from lm.sweep_progress import LOOK, Watch
from lm.sweep_results import plan_table, standing_of, write_table
from symrnn.files import run_program
from symrnn.training import Interrupt, environment
from symrnn.training.command_line import number, print_table, symmetry
from symrnn.training.process import usable_cores

EXAMPLE = """\
examples:
  python -m lm.sweep                        none and avg, two seeds each, on the built-in corpus
  python -m lm.sweep --seeds 1-5 --symm none avg block4 --out runs/ptb -- --data ptb
  python -m lm.sweep --seeds 6-8 --symm none avg block4 --out runs/ptb -- --data ptb   three more
  python -m lm.sweep --vary lr 1 0.5 --vary symm-ih "" ifgo --jobs 2 --out runs/lr -- --epochs 5
  python -m lm.sweep --print --seeds 1-5 --out runs/ptb -- --data ptb > commands.txt
  python -m lm.sweep --table --out runs/ptb

What stands after the -- is of python -m lm.train, and the same for all runs. The same command goes
on with a sweep that was stopped or killed, and tries again what failed.
"""

POLL = 0.1
"""Seconds: how often the processes are asked whether they have ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    # ---- configuration -------------------------------------------------------------------------
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, common = parse(words)
    if options.table:
        print(write_table(Sweep.read(options.out)), end="")
        return 0
    check_common(common)
    axes = axes_of(options.vary, common)
    with contextlib.nullcontext() if options.dry_run else held(options.out):
        # ---- runs ------------------------------------------------------------------------------
        sweep = Sweep.read(options.out) if is_sweep(options.out) else Sweep(options.out)
        resolver = Resolver(common, here=not (options.print or options.dry_run))
        runs, notes = sweep.plan(resolver, options.seeds, options.symm, axes)
        sweep.arguments = common
        if not options.print:
            sweep.threads = resolver.given.get("threads") or sweep.threads
            sweep.threads = sweep.threads or max(usable_cores() // options.jobs, 1)
        for note in notes:
            print(f"notice: {note}", file=sys.stderr)
        if options.dry_run:
            describe(sweep, runs, options.jobs)
            return 0
        command = shlex.join(["python", "-m", "lm.sweep", *words])
        sweep.commands = [*(c for c in sweep.commands if c != command), command]
        if options.print:
            sweep.write()
            for run in runs:
                print(shlex.join(command_of(sweep, run)))
            return 0

        # ---- run -------------------------------------------------------------------------------
        sweep.environment = sweep.environment or environment()
        for run in runs:
            run.failed = ""
        sweep.write()
        devices = devices_of(resolver.given.get("device", "auto"), options.jobs)
        stopped = run_all(sweep, runs, options.jobs, devices)

        # ---- end -------------------------------------------------------------------------------
        if stopped is not None:
            print(f"to go on, the same command again:\n  {command}", file=sys.stderr)
            return 128 + stopped
        print(write_table(sweep), end="")
        failed = [run for run in runs if run.failed]
        for run in failed:
            print(f"failed: {run.name}: {run.failed} ({sweep.log_of(run)})", file=sys.stderr)
        return 1 if failed else 0


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of the sweep, and the arguments of lm.train that stand after the --."""
    parser = argparse.ArgumentParser(
        prog="python -m lm.sweep",
        usage="python -m lm.sweep [options] [-- ARGUMENTS of python -m lm.train]",
        description="Train language models over seeds, forms and other options, each run by "
        "python -m lm.train in a process of its own, and make a table of it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seeds", type=seed_list, default=[1, 2], metavar="SEEDS", help="as in 1-3,7 (1-2)")
    add("--symm", type=symmetry, nargs="+", default=["none", "avg"], metavar="FORM")
    add(
        "--vary",
        nargs="+",
        action="append",
        default=[],
        metavar=("OPTION", "VALUE"),
        help="an option of lm.train, and what it is to be; may be given for several options",
    )
    add("--out", type=Path, default=Path("runs/sweep"), metavar="FOLDER", help="(runs/sweep)")
    add("--jobs", type=number(int, 1, 1024), default=1, metavar="N", help="runs at a time (1)")
    only = parser.add_mutually_exclusive_group().add_argument
    only("--dry-run", action="store_true", help="say what would be run, and run nothing")
    only("--print", action="store_true", help="print the commands, each of which may be run by")
    only("--table", action="store_true", help="make the table of what is there, and run nothing")
    at = words.index("--") if "--" in words else len(words)
    options, unknown = parser.parse_known_args(words[:at])
    if unknown:
        parser.error(
            f"unrecognized arguments: {shlex.join(unknown)}; those of lm.train stand after a --"
        )
    return options, list(words[at + 1 :])


def describe(sweep: Sweep, runs: Sequence[PlannedRun], jobs: int) -> None:
    """What --dry-run says."""
    standings = [standing_of(sweep.folder_of(run), run.config["epochs"]) for run in runs]
    finished = sum(standing.finished for standing in standings)
    values = {
        "folder": sweep.folder,
        "runs": f"{len(runs)}, of which {finished} are finished",
        "at a time": f"{jobs}, with {sweep.threads} threads each",
        "arguments": shlex.join(sweep.arguments) or "none",
    }
    print_table(values, 12)
    print(f"\n{plan_table(runs)}")


def command_of(sweep: Sweep, run: PlannedRun, device: str | None = None) -> list[str]:
    """The command of a run, which begins it, goes on with it, or finds it finished."""
    command = [sys.executable, "-m", "lm.train", *sweep.arguments, *run.arguments]
    if sweep.threads is not None:
        command += ["--threads", str(sweep.threads)]
    if device is not None:
        command += ["--device", device]
    return [*command, "--out", str(sweep.folder_of(run)), "--auto-resume"]


# ---- running -------------------------------------------------------------------------------------


def run_all(
    sweep: Sweep, runs: Sequence[PlannedRun], jobs: int, devices: list[str | None]
) -> signal.Signals | None:
    """Run what is not finished, ``jobs`` at a time; the signal that ended it early, or None.

    A run that another process is at is left to that, and looked at when that has ended: the runs
    of a sweep that was killed may still be saving.
    """
    interrupt = Interrupt("ending the runs under way, which save where they are")
    with interrupt, Watch(sweep, runs, jobs) as watch:
        waiting = [run for run in runs if not watch.look(run).finished]
        running: list[tuple[PlannedRun, Process, str | None]] = []
        free, told, look_again = [*devices], False, 0.0
        try:
            while running or (waiting and not interrupt.requested):
                if interrupt.requested and not told:
                    for _, process, _ in running:
                        process.stop()
                    told = True
                while waiting and free and not told and time.monotonic() >= look_again:
                    run = next((run for run in waiting if not watch.is_taken(run)), None)
                    if run is None:
                        look_again = time.monotonic() + LOOK
                        break
                    waiting.remove(run)
                    if not watch.look(run).finished:
                        device = free.pop(0)
                        process = Process(command_of(sweep, run, device), sweep.log_of(run))
                        running.append((run, process, device))
                for ended in [one for one in running if one[1].code() is not None]:
                    running.remove(ended)
                    run, process, device = ended
                    free.insert(0, device)
                    watch.ended(run, process.code() or 0, told)
                    sweep.write()
                watch.show([run for run, _, _ in running])
                time.sleep(POLL)
        finally:
            for _, process, _ in running:
                process.kill()
    return interrupt.number if any(not watch.look(run).finished for run in runs) else None


def devices_of(device: str, jobs: int) -> list[str | None]:
    """The device of each of the runs at a time: several GPUs are shared out among them."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device not in ("auto", "cuda") or count < 2:
        return [None] * jobs
    return [f"cuda:{job % count}" for job in range(jobs)]


if __name__ == "__main__":
    run_program(main, DataError)
