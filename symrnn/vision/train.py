"""``python -m symrnn.vision.train``: train an image network, from configuration to accuracy."""

from __future__ import annotations

import copy
import math
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from symrnn import harden, parameter_groups, soft_symmetry_penalty, symmetrize
from symrnn.files import UserError, run_program
from symrnn.surgery import Where
from symrnn.training import (
    Checkpoint,
    CheckpointError,
    Interrupt,
    RunFolder,
    Tracker,
    environment,
    keep_freed_memory,
    load_checkpoint,
    pack_state,
    peak_memory,
    save_checkpoint,
    seed_everything,
    set_threads,
    unpack_state,
)
from symrnn.training.command_line import folder_to_resume, require_compiler, unused_folder
from symrnn.vision import default_where
from symrnn.vision.accuracy import measure
from symrnn.vision.datasets import Dataset, open_dataset
from symrnn.vision.datasets.folder import FolderDataset
from symrnn.vision.dirac import no_decay
from symrnn.vision.distributed import World, running_statistics, synchronize_batch_norm
from symrnn.vision.drawing import draw_filters
from symrnn.vision.options import given, make_parser, resolve, resume_config
from symrnn.vision.recipes import lr_in
from symrnn.vision.saved import (
    build_model,
    memory_format_of,
    model_tensors,
    precision_of,
    print_counts,
    restore_model,
    save_best,
)


@dataclass
class Progress:
    """Where a run stands; with the tensors in a checkpoint, all it needs to go on exactly.

    What is drawn at random hangs on the seed and the step alone, and needs no state.
    """

    epoch: int = 1  # the epoch under way, from 1
    batch: int = 0  # the next batch of that epoch
    step: int = 0  # steps done in all
    nats: float = 0.0  # sum over this epoch's pictures of their training losses
    correct: float = 0.0  # how many of these pictures were recognised
    best: float = -1.0  # the best validation's accuracy, percent
    best_epoch: int = 0  # 0: none yet
    latest: float = 0.0  # the latest validation's accuracy, percent
    seconds: float = 0.0  # spent so far, over all resumes
    began: float = 0.0  # ``seconds`` as the epoch under way began


def main(arguments: Sequence[str] | None = None) -> int:
    with World() as world:
        # ---- configuration ---------------------------------------------------------------------
        options = make_parser().parse_args(arguments)
        with world.agreeing():
            resume = folder_to_resume(options.resume, options.out)
            config: dict[str, Any] = {}
            if resume is None:
                config = resolve(given(options))
            elif world.first:
                with RunFolder.open(resume) as run:
                    config = resume_config(run.config, given(options), run.path)
        config = world.share(config)
        with world.agreeing():
            device = world.device(config["device"])
            set_threads(config["threads"])
            if device.type == "cpu":
                keep_freed_memory()
            if config["compile"]:
                require_compiler(device)

        # ---- data ------------------------------------------------------------------------------
        dataset = _open_dataset(config, world, device, resume)
        config |= {"num_classes": len(dataset.classes), "pictures": dataset.fingerprint}

        # ---- model -----------------------------------------------------------------------------
        with world.agreeing():
            seed_everything(config["seed"])
            model = build_model(config)
            _check_sizes(config, dataset, model, world)
            _check_soft_symmetry(config, model)
            model.to(device, memory_format=memory_format_of(config))  # type: ignore[call-overload]
        if options.dry_run:
            for name, value in config.items():
                print(f"{name:16} {value}")
            print_counts(model)
            return 0

        # ---- run -------------------------------------------------------------------------------
        with ExitStack() as held:
            folder: RunFolder | None = None
            with world.agreeing():
                if world.first and resume is None:
                    path = options.out or _free_folder(config)
                    folder = held.enter_context(RunFolder.create(path, config))
                elif world.first and resume is not None:
                    folder = held.enter_context(RunFolder.open(resume))
            if folder is not None:
                print(f"the run is kept in {folder.path}", flush=True)
            training = Training(world, folder, config, dataset, model, device)
            training.restore()
            with training.logs():
                with Interrupt("ending after this step") as interrupt:
                    training.epochs(interrupt)
                training.report()
    return 0


class Training:
    """The state of a run, and what happens to it: restore, logs, epochs, report.

    A seed fixes a run on CPUs to the bit, on as many processes, however often it was resumed. On
    GPUs cuDNN picks its kernels by their speed, and some of them add up in any order.

    run: its folder, which the first process holds; None in the others.
    """

    def __init__(
        self,
        world: World,
        run: RunFolder | None,
        config: dict[str, Any],
        dataset: Dataset,
        model: nn.Module,
        device: torch.device,
    ) -> None:
        self.world = world
        self.run = run
        self.config = config
        self.dataset = dataset
        self.device = device
        self.batches = dataset.num_batches(config["batch_size"])
        self.precision = precision_of(config, device)
        self.memory_format = memory_format_of(config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config["precision"] == "fp16")
        self.soft_where = _soft_where(config, model)
        if config["sync_bn"] and world.size > 1:
            model = synchronize_batch_norm(model)
        self.model = model
        # Of a joint batch norm they are the same everywhere already.
        self.statistics = [] if config["sync_bn"] else running_statistics(model)
        self.optimizer = make_optimizer(model, config)
        self.forward = world.parallel(model)
        if config["compile"]:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        torch.backends.cudnn.benchmark = device.type == "cuda"  # all batches are of one shape
        self.progress = Progress()
        self.tracker: Tracker | None = None
        self.skipped = 0  # files that could not be read, as far as it was said
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)  # nats, correct: our part
        self.clock = time.monotonic()

    def restore(self) -> None:
        """Take up the run's last checkpoint, if there is one: the same in all processes."""
        checkpoint: Checkpoint | None = None
        with self.world.agreeing():
            if self.run is not None and self.run.last.exists():
                checkpoint = load_checkpoint(self.run.last)
        checkpoint = self.world.share(checkpoint)
        if checkpoint is None:
            return
        with self.world.agreeing():
            restore_model(self.model, checkpoint)
            try:
                state = unpack_state(checkpoint.tensors, checkpoint.meta["state"])
                self.optimizer.load_state_dict(state["optimizer"])
                self.scaler.load_state_dict(state["scaler"])
                self.progress = Progress(**state["progress"])
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise CheckpointError(
                    f"{checkpoint.path}: not a checkpoint that a run goes on from: {error!r}"
                ) from error
        progress = self.progress
        if self.world.first:  # holds what all have summed up
            self.sums[0], self.sums[1] = progress.nats, progress.correct
        print(f"continuing after step {progress.step}, in epoch {progress.epoch}", flush=True)

    def logs(self) -> AbstractContextManager[object]:
        """Open the run's logs, with what they hold up to the step that was restored."""
        if self.run is None:
            return nullcontext()
        begun = self.progress.step > 0
        self.tracker = Tracker(self.run, resume_step=self.progress.step if begun else None)
        if not begun:
            self.tracker.hparams(self.config, {})
            lines = [f"    {name}: {value}" for name, value in environment().items()]
            lines.append(f"    processes: {self.world.size}")
            self.tracker.text("environment", "\n".join(lines))
        return self.tracker

    def epochs(self, interrupt: Interrupt) -> None:
        """Train epoch by epoch, until the last or an interrupt of any process.

        A checkpoint follows all lines of its step and no other line of that step follows it, so
        that a run killed anywhere and resumed has every line once.
        """
        progress = self.progress
        # Asked between steps and, as one may come during a validation, between epochs.
        while progress.epoch <= self.config["epochs"] and not self.world.any(interrupt.requested):
            for group in self.optimizer.param_groups:
                group["lr"] = self._lr() * group["lr_scale"]
            self._train_epoch(interrupt)
            if progress.batch < self.batches:
                return
            self._validate()
            progress.epoch += 1
            progress.batch = 0
            self.sums.zero_()
            progress.began = self._seconds()
            self._save_last()

    def _train_epoch(self, interrupt: Interrupt) -> None:
        progress, world, batch_size = self.progress, self.world, self.config["batch_size"]
        since, first = time.perf_counter(), progress.batch
        self.model.train()
        bar = tqdm(
            total=self.batches * batch_size,
            initial=progress.batch * batch_size,
            desc=f"epoch {progress.epoch}/{self.config['epochs']}",
            unit="img",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=None,  # where nobody watches, the line at the end of each epoch is enough
        )
        batches = self.dataset.train_batches(
            progress.epoch - 1,
            batch_size,
            seed=self.config["seed"],
            start=progress.batch,
            rank=world.rank,
            world_size=world.size,
        )
        with bar:
            for pictures, labels in batches:
                done = self._step(pictures, labels)
                self.sums += done
                progress.batch += 1
                progress.step += 1
                bar.update(batch_size)
                if progress.step % self.config["log_every"] == 0:
                    nats, correct = world.sum(done.tolist())
                    now = time.perf_counter()
                    speed = (progress.batch - first) * batch_size / (now - since)
                    since, first = now, progress.batch
                    self._require_finite("training loss", nats)
                    bar.set_postfix_str(f"loss {nats / batch_size:.3f}")
                    self._scalars(
                        {
                            "train/loss": nats / batch_size,
                            "train/accuracy": 100 * correct / batch_size,
                            "learning_rate": self._lr(),
                            "images_per_second": speed,
                        }
                    )
                if progress.batch == self.batches:
                    return  # the checkpoint comes after the validation
                stop = world.any(interrupt.requested)
                if stop or progress.step % self.config["save_every"] == 0:
                    self._save_last()
                if stop:
                    return

    def _step(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """One update by this process's part of a batch.

        Returns float64 (2,): the sum of its pictures' losses in nats, and how many it recognised.
        """
        config = self.config
        # For dropout, elsewhere than in the other processes.
        key = (config["seed"], self.progress.step, self.world.rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            logits = self.forward(pictures.contiguous(memory_format=self.memory_format))
        logits = logits.float()
        loss = F.cross_entropy(logits, labels)
        objective = loss
        if config["soft_symmetry"]:
            penalty = soft_symmetry_penalty(self.model, config["soft_norm"], self.soft_where)
            objective = loss + config["soft_symmetry"] * penalty
        self.scaler.scale(objective).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.world.average_(self.statistics)
        correct = (logits.argmax(1) == labels).sum()
        return torch.stack([loss.detach().double() * len(labels), correct.double()])

    def _require_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        if self.run is None:  # the first process, which sees the same, says so
            raise SystemExit(UserError.exit_code)
        progress = self.progress
        files = [self.run.best, self.run.last]
        kept = [str(file) for file in files if file.exists()]
        raise UserError(
            f"the {what} is {value} in epoch {progress.epoch}, after {progress.batch} of its "
            f"{self.batches} batches (step {progress.step}), at learning rate {self._lr():g}: "
            f"stopped; checkpoints from before: {', '.join(kept) or 'none yet'}"
        )

    def _validate(self) -> None:
        """Measure the validation set, keep the best model, and log."""
        progress, config = self.progress, self.config
        pictures = self.batches * config["batch_size"]
        nats, correct = self.world.sum(self.sums.tolist())
        self._require_finite("training loss", nats)
        model = self._final()
        score = measure(
            model,
            self.dataset,
            config["batch_size"] // self.world.size,
            world=self.world,
            precision=self.precision,
            memory_format=self.memory_format,
        )
        self._require_finite("validation loss", score.loss)
        values = {
            "valid/loss": score.loss,
            "valid/accuracy": score.accuracy,
            "train/epoch_loss": nats / pictures,
            "train/epoch_accuracy": 100 * correct / pictures,
            "epoch": progress.epoch,
        }
        if score.accuracy5 is not None:
            values["valid/accuracy5"] = score.accuracy5
        self._scalars(values)
        if self.tracker is not None and (config["symm"] != "none" or config["soft_symmetry"]):
            self.tracker.figure(progress.step, "symmetric filter", draw_filters(model))
        five = "" if score.accuracy5 is None else f", top five {score.accuracy5:.2f} %"
        print(
            f"epoch {progress.epoch:3}/{config['epochs']}  lr {self._lr():<8.4g}  "
            f"train {100 * correct / pictures:6.2f} %  valid {score.accuracy:6.2f} %{five}  "
            f"{self._seconds() - progress.began:6.1f} s",
            flush=True,
        )
        self._warn_of_skipped_files()
        progress.latest = score.accuracy
        if score.accuracy > progress.best:
            progress.best, progress.best_epoch = score.accuracy, progress.epoch
            self._save_best(model)
        if self.tracker is not None and progress.epoch == config["epochs"]:
            metrics = {"best_accuracy": progress.best, "last_accuracy": progress.latest}
            self.tracker.hparams(config, metrics)

    def _warn_of_skipped_files(self) -> None:
        """Say how many files could not be read so far, if there were more in this epoch."""
        own = list(self.dataset.broken) if isinstance(self.dataset, FolderDataset) else []
        broken = {name for names in self.world.gather(own) for name in names}
        if len(broken) > self.skipped:
            self.skipped = len(broken)
            print(
                f"notice: {self.skipped} files could not be read and are skipped, such as "
                f"{min(broken)}",
                file=sys.stderr,
            )

    def report(self) -> None:
        """Say what came of it: accuracies, parameters, time and memory."""
        progress, run = self.progress, self.run
        if run is None:
            return
        print()
        if progress.epoch <= self.config["epochs"]:
            print(f"interrupted in epoch {progress.epoch}; to go on:")
            print(f"  python -m symrnn.vision.train --resume {shlex.quote(str(run.path))}")
        if progress.best_epoch:
            print(f"best model            epoch {progress.best_epoch}, {run.best}")
            print(f"best accuracy         {progress.best:.2f} %")
            print(f"last accuracy         {progress.latest:.2f} %")
        print_counts(self._final())
        print(f"time                  {progress.seconds:.1f} s")
        print(f"peak memory           {peak_memory(self.device) / 2**20:.0f} MiB")

    def _lr(self) -> float:
        """The learning rate of the epoch under way."""
        config = self.config
        return lr_in(self.progress.epoch, config["lr"], config["lr_divide"], config["lr_steps"])

    def _seconds(self) -> float:
        """The seconds spent on the run so far, over all resumes."""
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now
        return self.progress.seconds

    def _scalars(self, values: dict[str, float]) -> None:
        if self.tracker is not None:
            self.tracker.scalars(self.progress.step, values)

    def _final(self) -> nn.Module:
        """The model as it is measured and kept: with soft symmetry, made symmetric."""
        if not self.config["soft_symmetry"]:
            return self.model
        model = copy.deepcopy(self.model)
        harden(model, self.soft_where)
        symmetrize(model, "tri", self.soft_where)  # exactly what it is now, in half the numbers
        return model

    def _save_best(self, model: nn.Module) -> None:
        if self.run is None:
            return
        symm = "tri" if self.config["soft_symmetry"] else self.config["symm"]
        save_best(
            self.run.best,
            model,
            {**self.config, "symm": symm},
            epoch=self.progress.epoch,
            accuracy=self.progress.best,
            classes=list(self.dataset.classes),
            mean=list(self.dataset.mean),
            std=list(self.dataset.std),
        )

    def _save_last(self) -> None:
        weights = [parameter.detach().abs().max() for parameter in self.model.parameters()]
        self._require_finite("largest weight", torch.stack(weights).max().item())
        progress = self.progress
        progress.nats, progress.correct = self.world.sum(self.sums.tolist())
        self._seconds()
        if self.run is None or self.tracker is None:
            return
        self.tracker.flush()  # first the lines, then the checkpoint that relies on them
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(progress),
        }
        tensors, packed = pack_state(state, "state")
        save_checkpoint(
            self.run.last,
            {**model_tensors(self.model), **tensors},
            {"config": self.config, "state": packed},
        )


def make_optimizer(model: nn.Module, config: dict[str, Any]) -> torch.optim.SGD:
    """The descent of a configuration, of a model on its device.

    Every weight decays as it would in a plain layer, by lr · weight_decay of itself a step: where
    symmetric numbers are trained at a smaller rate, their decay is larger by as much.
    """
    free, decay = no_decay(model), config["weight_decay"]
    groups = []
    for group in parameter_groups(model, config["lr"]):
        for decayed in (True, False):
            chosen = [p for p in group["params"] if (id(p) not in free) == decayed]
            if chosen:
                own = decay / group["lr_scale"] if decayed else 0.0
                groups.append({**group, "params": chosen, "weight_decay": own})
    return torch.optim.SGD(
        groups, lr=config["lr"], momentum=config["momentum"], nesterov=config["nesterov"]
    )


def _open_dataset(
    config: dict[str, Any], world: World, device: torch.device, resume: Path | None
) -> Dataset:
    """The pictures of a run; UserError if a run to be resumed was started with others."""
    dataset: Dataset | None = None
    for turn in (True, False):  # one process of each machine before the others: it may download
        with world.agreeing():
            if turn == (world.local_rank == 0):
                try:
                    dataset = open_dataset(
                        config["data"],
                        device=device,
                        image_size=config["image_size"],
                        workers=config["workers"],
                    )
                except UserError as error:
                    if resume is None:
                        raise
                    where = "where the pictures are now, --data says"
                    raise UserError(f"{error} ({where})") from error
    assert dataset is not None
    with world.agreeing():
        if resume is not None and dataset.fingerprint != config["pictures"]:
            raise UserError(
                f"the pictures of {config['data']} are not those that the run in {resume} was "
                "started with: a run is continued on the same pictures"
            )
    return dataset


def _check_sizes(config: dict[str, Any], dataset: Dataset, model: nn.Module, world: World) -> None:
    """Raise UserError for pictures of a size that the model is not for, and uneven batches."""
    size, batch_size = dataset.image_size, config["batch_size"]
    if size != model.image_size and config["image_size"] is None:
        raise UserError(
            f"--model {config['model']} is for pictures of {model.image_size}×{model.image_size}, "
            f"and those of {dataset.name} are of {size}×{size}; to train on them all the same, "
            f"give --image-size {size}"
        )
    if batch_size % world.size:
        raise UserError(
            f"--batch-size should be a multiple of the {world.size} processes, got: {batch_size}"
        )
    dataset.num_batches(batch_size)
    joint = batch_size if config["sync_bn"] else batch_size // world.size
    if size != model.image_size or joint == 1:
        # Where a picture shrinks to nothing, or to one number that a batch norm has no variance of.
        try:
            with torch.no_grad():
                copy.deepcopy(model).train()(torch.zeros(min(joint, 2), 3, size, size))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"--model {config['model']} cannot be trained on pictures of {size}×{size} with "
                f"{joint} in a batch: {error}"
            ) from error


def _soft_where(config: dict[str, Any], model: nn.Module) -> Where:
    """Which weights of a model the soft penalty is of."""
    return default_where(model) if config["where"] is None else config["where"]


def _check_soft_symmetry(config: dict[str, Any], model: nn.Module) -> None:
    """Raise UserError if the soft penalty is of weights that cannot be symmetric, or of none."""
    if config["soft_symmetry"]:
        try:
            soft_symmetry_penalty(model, config["soft_norm"], _soft_where(config, model))
        except (TypeError, ValueError) as error:
            raise UserError(f"--soft-symmetry {config['soft_symmetry']}: {error}") from error


def _free_folder(config: dict[str, Any]) -> Path:
    """A folder in runs/ named after the configuration, that does not exist yet."""
    parts = [Path(config["data"]).name, config["model"]]
    soft = f"soft{config['soft_symmetry']:g}"
    parts.append(soft if config["soft_symmetry"] else config["symm"].replace(":", "-"))
    if config["axes"] != "channel":
        parts.append(config["axes"])
    if config["share"] != "none":
        parts.append(config["share"])
    return unused_folder(Path("runs") / "-".join([*parts, f"seed{config['seed']}"]))


if __name__ == "__main__":
    run_program(main)
