"""``python -m lm.sweep``: train over seeds, forms and other options, and make a table of it."""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from data import DataError
from lm.sweep_plan import (
    PlannedRun,
    Resolver,
    Sweep,
    axes_of,
    check_common,
    has_sweep,
    held,
    options_in,
    seed_list,
)
from lm.sweep_processes import Process
from lm.sweep_progress import LOOK, Watch
from lm.sweep_results import plan_table, results_of, standing_of, text_of, write_table
from symrnn.files import UserError, run_program
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

FOLDER = "where the sweep is stored, each run in a folder of its own (runs/sweep)"

POLL = 0.1
"""Seconds: how often the processes are asked whether they have ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    # ---- configuration -------------------------------------------------------------------------
    words = list(sys.argv[1:] if arguments is None else arguments)
    options, common = parse(words)
    if options.table:
        results = results_of(Sweep.read(options.out))
        print(text_of(results), end="")
        try:
            write_table(options.out, results)
        except UserError as error:  # somebody else's sweep, perhaps, that may only be read
            print(f"notice: {error}", file=sys.stderr)
        return 0
    check_common(common)
    axes = axes_of(options.vary, common)
    with contextlib.nullcontext() if options.dry_run else held(options.out):
        # ---- runs ------------------------------------------------------------------------------
        sweep = Sweep.read(options.out) if has_sweep(options.out) else Sweep(options.out)
        resolver = Resolver(common, here=not (options.print or options.dry_run))
        runs, notes = sweep.plan(resolver, options.seeds, options.symm, axes)
        sweep.arguments = common
        if not options.print:
            set_threads(sweep, resolver.given.get("threads"), options.jobs)
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
        sweep.environment = sweep.environment or environment_of_runs()
        for run in runs:
            run.failed = ""
        sweep.write()
        devices = devices_of(resolver.given.get("device", "auto"), options.jobs)
        stopped = run_all(sweep, runs, options.jobs, devices)

        # ---- end -------------------------------------------------------------------------------
        if stopped is not None:
            print(f"to go on, the same command again:\n  {command}", file=sys.stderr)
            return 128 + stopped
        results = results_of(sweep)
        print(text_of(results), end="")
        write_table(sweep.folder, results)
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
    forms = "forms, as --symm of lm.train has them (none avg)"
    add("--symm", type=symmetry, nargs="+", default=["none", "avg"], metavar="FORM", help=forms)
    add(
        "--vary",
        nargs="+",
        action="append",
        default=[],
        metavar=("OPTION", "VALUE"),
        help="another option of lm.train and its values; may be given for several options, of "
        "which every combination is run",
    )
    add("--out", type=Path, default=Path("runs/sweep"), metavar="FOLDER", help=FOLDER)
    add("--jobs", type=number(int, 1, 1024), default=1, metavar="N", help="runs at a time (1)")
    only = parser.add_mutually_exclusive_group().add_argument
    only("--dry-run", action="store_true", help="say what would be run, and run nothing")
    only(
        "--print",
        action="store_true",
        help="print the commands, one a line, for the jobs of a cluster, and run nothing; each "
        "begins its run, or goes on with it",
    )
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
        "at a time": f"{jobs}, with --threads {sweep.threads} each",
        "arguments": shlex.join(sweep.arguments) or "none",
    }
    print_table(values, 12)
    print(f"\n{plan_table(runs)}")


def set_threads(sweep: Sweep, wanted: int | None, jobs: int) -> None:
    """Say how many threads each run has: what --threads says, else as many as fit the cores.

    All runs of a sweep have the same, also those that are begun later with another --jobs: the
    order of a sum, and so its last bits, depends on the number of threads.
    """
    cores = usable_cores()
    if wanted is None and sweep.threads is not None and sweep.threads * jobs > cores > 1:
        print(
            f"notice: {jobs} at a time with {sweep.threads} threads each, as the sweep was begun, "
            f"are more than the {cores} cores; --threads after the -- changes it",
            file=sys.stderr,
        )
    sweep.threads = wanted or sweep.threads or max(cores // jobs, 1)


def environment_of_runs() -> dict[str, Any]:
    """What the runs are made with. Where there are GPUs, a process asks, and lets go of them."""
    if not torch.cuda.is_available():
        return environment()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(environment).result()


def command_of(sweep: Sweep, run: PlannedRun, device: str | None = None) -> list[str]:
    """The command of a run, which begins it, goes on with it, or finds it finished."""
    command = [sys.executable, "-m", "lm.train", *sweep.arguments, *run.arguments]
    if sweep.threads is not None and "threads" not in options_in(sweep.arguments):
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
                    if process.code() and watch.is_taken(run):  # by one that was a moment earlier
                        waiting.append(run)
                        continue
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
