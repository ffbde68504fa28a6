"""The processes of a data-parallel run, as ``torchrun`` starts them.

A program that is started by itself is a world of one process: everything here works there too, and
does nothing.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from symrnn.files.errors import UserError
from symrnn.training.interrupt import Stopped
from symrnn.training.process import resolve_device

T = TypeVar("T")

WORK = timedelta(days=1)
"""How long a process waits for what another does alone: the validation of a long text takes hours.
"""

POLL, GRACE = 1.0, 10.0
"""Seconds: how often a process looks whether another has failed; how long it may take to end."""

PATIENCE = 120.0
"""Seconds in which the processes should find each other: all load Python, on some machines slowly.

``torchrun`` starts them when all its machines are there; for those it waits by a rule of its own.
"""

_left: list[object] = []
"""Groups that were left, until the interpreter ends.

A model of :meth:`World.parallel` holds its group too, and where it drops the last hold of it, the
group waits for threads that wait for Python's lock, which that one has. From here it goes without.
"""


class World:
    """The processes that train together, seen from one of them; all of them are in its ``with``.

    Read from the environment that ``torchrun`` makes (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR,
    MASTER_PORT); without it, one process.

    rank: of this process, from 0.
    local_rank: its number on its machine, which is that of its GPU.
    size: how many there are.

    The first alone is heard: in the others what Python writes to stdout and stderr goes nowhere
    until the ``with`` ends. An error in one of them ends all: at once where they wait in
    :meth:`agreeing`, and otherwise, whatever they are waiting for, after POLL + GRACE seconds. (Of
    a process that is killed by SIGKILL nobody knows but ``torchrun`` on its machine, which ends
    the others there, and whoever is connected to it.)

    Raises UserError for an environment that is not torchrun's; its ``with``, if the processes do
    not find each other within PATIENCE seconds, or after PATIENCE + GRACE if what listens at
    MASTER_PORT is something else, which never answers.
    """

    def __init__(self) -> None:
        try:
            numbers = [int(os.environ.get(n, "0")) for n in ("RANK", "LOCAL_RANK")]
            self.rank, self.local_rank = numbers
            self.size = int(os.environ.get("WORLD_SIZE", "1"))
            if not 0 <= self.rank < self.size or self.local_rank < 0:
                raise ValueError
        except ValueError:
            names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
            got = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
            raise UserError(f"the environment is none that torchrun makes: {got}") from None
        self._open = contextlib.ExitStack()
        self._ended = threading.Event()

    @property
    def first(self) -> bool:
        """Whether this process is the one that speaks and writes."""
        return self.rank == 0

    # ---- begin and end -------------------------------------------------------------------------

    def __enter__(self) -> World:
        if self.size == 1:
            return self
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._failed = f"symrnn/failed/{attempt}"
        host, port = _address()
        if self.rank:
            self._look_for(host, port)
        try:
            store = _within(PATIENCE + GRACE, _open_store)
            self._meet(store, f"symrnn/here/{attempt}")
            # A connection of our own: that of the group belongs to the thread that waits in it.
            self._store = dist.TCPStore(host, port, is_master=False)
        except dist.DistError as error:
            why, *_ = str(error).splitlines()
            raise UserError(
                f"process {self.rank} of {self.size} did not find the others: {why}"
            ) from error
        except futures.TimeoutError as error:
            raise UserError(
                f"process {self.rank} of {self.size} did not find the others: what listens at "
                f"MASTER_ADDR={host}, MASTER_PORT={port} is none of them, and never answers"
            ) from error
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._watcher.start()
        if not self.first:
            nowhere = self._open.enter_context(open(os.devnull, "w"))
            self._open.enter_context(contextlib.redirect_stdout(nowhere))
            self._open.enter_context(contextlib.redirect_stderr(nowhere))
        return self

    def _look_for(self, host: str, port: int) -> None:
        """Wait until somebody listens there: the first process, or its ``torchrun``.

        Raises UserError if nobody does in time. (TCPStore waits too, but is not brief about it.)
        """
        end = time.monotonic() + PATIENCE
        while True:
            try:
                socket.create_connection((host, port), timeout=PATIENCE).close()
                return
            except OSError as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"process {self.rank} of {self.size} found nobody at MASTER_ADDR={host}, "
                        f"MASTER_PORT={port} within {PATIENCE:g} seconds: {error}"
                    ) from error
            time.sleep(0.1)

    def _meet(self, store: dist.Store, here: str) -> None:
        """Wait until all processes are there, and make their group.

        here: what the names begin with under which they say so.

        Raises an error of ``torch.distributed`` if one is not there in time.
        """
        store.set(f"{here}/{self.rank}", "")
        names = [f"{here}/{rank}" for rank in range(self.size)]
        store.wait(names, timedelta(seconds=PATIENCE))
        # From here on who waits does so for another's work, which may take long.
        store.set_timeout(WORK)
        # Of gloo on CPUs, NCCL on GPUs.
        dist.init_process_group(store=store, rank=self.rank, world_size=self.size, timeout=WORK)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.size == 1:
            return
        try:
            if error is None:
                self.barrier()  # the first may hold the store that the others look into
            elif isinstance(error, SystemExit):  # all end so
                pass
            elif _is_lost_connection(error):
                if self._has_failed():
                    raise SystemExit(UserError.exit_code)  # who failed says why
                raise UserError(
                    f"process {self.rank} of {self.size} lost another one, which ended: the run "
                    "can be resumed from its last checkpoint"
                ) from error
            else:
                with contextlib.suppress(dist.DistError):
                    self._store.set(self._failed, "1")
        finally:
            self._ended.set()
            self._watcher.join(GRACE)  # an interpreter that ends under it would abort
            self._open.close()
            if error is None:
                _left.append(dist.group.WORLD)
                dist.destroy_process_group()

    def _watch(self) -> None:
        """End the process if another has failed, even while it waits inside an operation."""
        while not self._ended.wait(POLL):
            if self._has_failed() and not self._ended.wait(GRACE):
                os._exit(UserError.exit_code)

    def _has_failed(self) -> bool:
        try:
            return bool(self._store.check([self._failed]))
        except dist.DistError:  # who held it is gone
            return True

    # ---- saying and hearing --------------------------------------------------------------------

    @contextlib.contextmanager
    def agreeing(self) -> Iterator[None]:
        """A part of the program that may fail in some processes: then all end with that error.

        Only a UserError is waited for; the first of them is raised in the first process, and the
        others end without a word.
        """
        error: UserError | None = None
        try:
            yield
        except UserError as caught:
            if self.size == 1:
                raise
            error = caught
        if self.size == 1:
            return
        said = self.gather(None if error is None else str(error))
        messages = [message for message in said if message is not None]
        if not messages:
            return
        if not self.first:
            raise SystemExit(UserError.exit_code)
        raise error or UserError(messages[0])

    def share(self, make: Callable[[], T]) -> T:
        """What the first process makes, in all of them; the others wait for it.

        If it stops there (:class:`Stopped`), all do.
        """
        if self.size == 1:
            return make()
        values: list[Any] = [None, False]
        if self.first:
            try:
                values[0] = make()
            except Stopped:
                values[1] = True
        dist.broadcast_object_list(values)
        if values[1]:
            raise Stopped
        shared: T = values[0]
        return shared

    def one_first(self, make: Callable[[], T]) -> T:
        """What each process makes; one of each machine before the others there: it may download.

        Of a UserError all end, as in :meth:`agreeing`.
        """
        made: list[T] = []
        for turn in (True, False):
            with self.agreeing():
                if turn == (self.local_rank == 0):
                    made.append(make())
        return made[0]

    def gather(self, value: T) -> list[T]:
        """What each process gives, in all of them, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums over all processes."""
        if self.size == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(sums)
        return sums.tolist()

    def average_(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into each tensor, on any device."""
        tensors = list(tensors)
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def barrier(self) -> None:
        """Wait until all processes are here."""
        self.sum([0.0])

    # ---- batches, devices and models -----------------------------------------------------------

    def part_of(self, batch_size: int) -> slice:
        """This process's part of a joint batch. Raises UserError if the parts are not equal."""
        if batch_size % self.size:
            raise UserError(
                f"--batch-size should be a multiple of the {self.size} processes, got: {batch_size}"
            )
        each = batch_size // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def device(self, name: str) -> torch.device:
        """This process's device: of several processes each has a GPU of its own.

        name: as of ``resolve_device``, but "cuda:1" of one process only.

        Raises UserError for that, and if the machine has fewer GPUs than processes.
        """
        device = resolve_device(name)
        if self.size == 1 or device.type == "cpu":
            return device
        if ":" in name:
            raise UserError(
                f"device: {name!r} is one GPU for {self.size} processes; each takes one of its "
                "own by cuda"
            )
        count = torch.cuda.device_count()
        if self.local_rank >= count:
            raise UserError(
                f"torchrun started more processes (--nproc-per-node) than this machine has GPUs "
                f"({count})"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def parallel(self, model: nn.Module) -> nn.Module:
        """``model``, to be called in training: its gradients are the mean over all processes.

        All start with the parameters and buffers of the first. Buffers are not sent at each step;
        for those of batch norms see :mod:`symrnn.vision.batch_norm`.
        """
        if self.size == 1:
            return model
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)  # older releases would leave them as they are
        on_gpu = next(model.parameters()).is_cuda
        known = inspect.signature(DistributedDataParallel).parameters
        # The name it has in newer releases, where the former one warns.
        send = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        options: dict[str, Any] = {send: False}
        parallel = DistributedDataParallel(
            model,
            device_ids=[self.local_rank] if on_gpu else None,
            gradient_as_bucket_view=True,
            **options,
        )
        _lay_out_gradients(parallel)
        return parallel


def _address() -> tuple[str, int]:
    """Where the processes meet. Raises UserError for what is no address or no port."""
    names = ("MASTER_ADDR", "MASTER_PORT")
    host, port = (os.environ.get(name, "") for name in names)
    if host and port.isdecimal() and 0 < int(port) < 2**16:
        return host, int(port)
    got = ", ".join(f"{name}={os.environ.get(name)}" for name in names)
    raise UserError(
        f"the environment is none that torchrun makes, of a host and a port from 1 to 65535: {got}"
    )


def _open_store() -> dist.Store:
    """Where the processes find each other.

    Raises an error of ``torch.distributed`` if that is not there within PATIENCE seconds; from a
    server that accepts the connection and does not answer it never returns.
    """
    store: dist.Store
    store, *_ = next(dist.rendezvous("env://", timeout=timedelta(seconds=PATIENCE)))
    return store


def _within(seconds: float, make: Callable[[], T]) -> T:
    """What is made, in a thread that is left to itself if it takes longer.

    Then it raises ``futures.TimeoutError``.
    """
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(make())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, name="make", daemon=True).start()
    return future.result(seconds)


class _SumOfParameters(nn.Module):
    """A module whose gradient is 1 everywhere, so that each parameter has one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self) -> Tensor:
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        return torch.stack([p.sum() for p in parameters]).sum()


def _lay_out_gradients(parallel: DistributedDataParallel) -> None:
    """Have the first backward pass of DDP over, after which it lays out its buckets anew, once.

    Where a gradient lies in a bucket decides in which order those of three and more processes are
    added up. A resumed run, whose first step is a later one, would add up otherwise there.
    """
    model = parallel.module
    parallel.module = _SumOfParameters(model)
    parallel().backward()
    parallel.module = model
    model.zero_grad(set_to_none=True)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether this is what an operation over all processes raises when one of them is gone."""
    # Gloo's errors are RuntimeErrors of no kind of their own.
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError)
        and any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "Connection closed"))
    )
