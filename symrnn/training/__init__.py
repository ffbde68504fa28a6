"""What the training programs share: run folder, checkpoints, exact resume, trackers, processes.

A run, from its first step or from where it was killed::

    run = RunFolder.open(path) if resume else RunFolder.create(path, config)
    checkpoint = load_checkpoint(run.last) if run.last.exists() else None
    tracker = Tracker(run, resume_step=checkpoint.meta["step"] if checkpoint else None)
    with Interrupt() as interrupt:
        ...                              # steps, until done or interrupt.requested
        tracker.flush()                  # first the lines, then the checkpoint that relies on them
        save_checkpoint(run.last, tensors, {"step": step, ...})
"""

from symrnn.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from symrnn.training.interrupt import Interrupt
from symrnn.training.process import (
    environment,
    keep_freed_memory,
    peak_memory,
    resolve_device,
    seed_everything,
    set_threads,
)
from symrnn.training.run_folder import RunFolder
from symrnn.training.state import pack_state, rng_state, set_rng_state, unpack_state
from symrnn.training.tracker import Tracker

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Interrupt",
    "RunFolder",
    "Tracker",
    "environment",
    "keep_freed_memory",
    "load_checkpoint",
    "pack_state",
    "peak_memory",
    "resolve_device",
    "rng_state",
    "save_checkpoint",
    "seed_everything",
    "set_rng_state",
    "set_threads",
    "unpack_state",
]
