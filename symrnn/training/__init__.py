"""What the training programs share: the loop, run folder, exact resume, trackers, processes.

The loop, which shows how the rest is used, is ``symrnn.training.loop``. The packages of the extra
"train" give it curves, figures and a progress bar; without them it trains all the same.
"""

from symrnn.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    check_shapes,
    load_checkpoint,
    model_tensors,
    restore_model,
    save_checkpoint,
)
from symrnn.training.interrupt import Interrupt, Stopped
from symrnn.training.process import (
    autocast,
    environment,
    keep_freed_memory,
    peak_memory,
    resolve_device,
    seed_everything,
    seed_step,
    set_threads,
)
from symrnn.training.run_folder import RunFolder
from symrnn.training.state import pack_state, unpack_state
from symrnn.training.tracker import Tracker
from symrnn.training.world import World

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Interrupt",
    "RunFolder",
    "Stopped",
    "Tracker",
    "World",
    "autocast",
    "check_shapes",
    "environment",
    "keep_freed_memory",
    "load_checkpoint",
    "model_tensors",
    "pack_state",
    "peak_memory",
    "resolve_device",
    "restore_model",
    "save_checkpoint",
    "seed_everything",
    "seed_step",
    "set_threads",
    "unpack_state",
]
