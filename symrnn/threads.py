"""Torch's threads: models are made on one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operators run on the calling thread alone; a decorator too.

    For what makes a model, so that the process may be forked afterwards: a child has none of its
    parent's threads, and where the parent has computed with some, the child's first parallel
    operator waits for them forever. Making an ``nn.LSTM`` runs nothing in parallel either.

    Results do not depend on ``torch.get_num_threads()``, which is as before in the end.
    """
    count = torch.get_num_threads()
    if count == 1:
        yield
        return
    torch.set_num_threads(1)
    # That is also what new threads begin with. The number is theirs again before they can.
    other = threading.Thread(target=torch.set_num_threads, args=(count,))
    other.start()
    other.join()
    try:
        yield
    finally:
        torch.set_num_threads(count)
