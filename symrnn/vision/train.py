"""``python -m symrnn.vision.train``: train an image network, from configuration to accuracy."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from symrnn import soft_symmetry_penalty
from symrnn.files import UserError, run_program
from symrnn.training import World, seed_everything
from symrnn.training.command_line import print_table
from symrnn.training.loop import Run
from symrnn.vision import default_where
from symrnn.vision.accuracy import measure
from symrnn.vision.datasets import Dataset, open_dataset
from symrnn.vision.datasets.folder import FolderDataset
from symrnn.vision.drawing import draw_filters
from symrnn.vision.learner import ImageLearner
from symrnn.vision.options import make_parser, resolve, resume_config
from symrnn.vision.recipes import lr_in
from symrnn.vision.saved import (
    build_model,
    counts_of,
    memory_format_of,
    require_memory,
    save_best,
)


def main(arguments: Sequence[str] | None = None) -> int:
    with World() as world, Run("symrnn.vision.train", world) as run:
        # ---- configuration ---------------------------------------------------------------------
        options = make_parser().parse_args(arguments)
        config = run.configure(options, resolve, resume_config)
        batch_size = config["batch_size"]

        # ---- data ------------------------------------------------------------------------------
        dataset = world.one_first(lambda: _open_dataset(config, run))
        config |= {"num_classes": len(dataset.classes), "pictures": dataset.fingerprint}

        # ---- model -----------------------------------------------------------------------------
        with world.agreeing():
            require_memory(config)
            seed_everything(config["seed"])
            model = build_model(config)
            _check_sizes(config, dataset, model, world)
            _check_soft_symmetry(config, model)
            format = memory_format_of(config)
            model.to(run.device, memory_format=format)  # type: ignore[call-overload]
        if options.dry_run:
            print_table(config, 16)
            print_table(counts_of(model))
            return 0

        # ---- run -------------------------------------------------------------------------------
        learner = ImageLearner(model, config, world)
        run.start(
            learner,
            config,
            name=_folder_name(config),
            batches=dataset.num_batches(batch_size),
            batch_size=batch_size,
            unit="img",
            lowest_is_best=False,
            facts=_facts(config, dataset, model),
        )
        told = 0  # of how many unreadable files was said
        for epoch in run.epochs(config["epochs"]):
            lr = lr_in(epoch, config["lr"], config["lr_divide"], config["lr_steps"])
            learner.set_lr(lr)
            batches = dataset.train_batches(
                epoch - 1,
                batch_size,
                seed=config["seed"],
                start=run.progress.batch,
                rank=world.rank,
                world_size=world.size,
            )
            for pictures, labels in run.steps(batches):
                done = learner.step(pictures, labels)
                if run.due:
                    nats, correct = world.sum(done.tolist())
                    run.require_finite("training loss", nats)
                    values = {
                        "train/loss": nats / batch_size,
                        "train/accuracy": 100 * correct / batch_size,
                        "learning_rate": lr,
                        "images_per_second": run.speed(),
                    }
                    run.log(values, note=f"loss {nats / batch_size:.3f}")
            if run.stopped:
                break
            with run.measuring():
                _validate(run, learner, dataset)
            told = _warn_of_skipped_files(dataset, world, told)
        return run.end(lambda: _results(run, learner))


def _validate(run: Run, learner: ImageLearner, dataset: Dataset) -> None:
    """Measure the validation set, log, and save the best model."""
    progress, config, world = learner.progress, run.config, run.world
    learner.add_up()
    run.require_finite("training loss", progress.nats)
    model = learner.final()
    score = measure(
        model,
        dataset,
        config["batch_size"] // world.size,
        world=world,
        precision=learner.precision,
        memory_format=learner.memory_format,
        stop=run.terminated,
    )
    run.require_finite("validation loss", score.loss)
    pictures = run.batches * config["batch_size"]
    values = {
        "valid/loss": score.loss,
        "valid/accuracy": score.accuracy,
        "train/epoch_loss": progress.nats / pictures,
        "train/epoch_accuracy": 100 * progress.correct / pictures,
        "epoch": progress.epoch,
    }
    if score.accuracy5 is not None:
        values["valid/accuracy5"] = score.accuracy5
    run.log(values)
    if config["symm"] != "none" or config["soft_symmetry"]:
        run.figure("symmetric filter", lambda: draw_filters(model))
    five = "" if score.accuracy5 is None else f", top five {score.accuracy5:.2f} %"
    print(
        f"epoch {progress.epoch:3}/{config['epochs']}  lr {progress.lr:<8.4g}  "
        f"train {values['train/epoch_accuracy']:6.2f} %  valid {score.accuracy:6.2f} %{five}  "
        f"{run.epoch_seconds():6.1f} s",
        flush=True,
    )
    progress.latest = score.accuracy
    symm = "tri" if config["soft_symmetry"] else config["symm"]
    if run.keep_best(
        score.accuracy,
        lambda path: save_best(
            path,
            model,
            {**config, "symm": symm},
            epoch=progress.epoch,
            accuracy=score.accuracy,
            classes=list(dataset.classes),
            mean=list(dataset.mean),
            std=list(dataset.std),
        ),
    ):
        progress.best_epoch = progress.epoch
    if progress.epoch == config["epochs"]:
        run.outcome({"best_accuracy": progress.best, "last_accuracy": progress.latest})


def _warn_of_skipped_files(dataset: Dataset, world: World, told: int) -> int:
    """Say how many files could not be read so far, if more than was told; how many these are."""
    own = list(dataset.broken) if isinstance(dataset, FolderDataset) else []
    broken = {name for names in world.gather(own) for name in names}
    if len(broken) > told:
        print(
            f"notice: {len(broken)} files could not be read and are skipped, such as {min(broken)}",
            file=sys.stderr,
        )
    return len(broken)


def _results(run: Run, learner: ImageLearner) -> dict[str, str]:
    """What came of the run: accuracies and parameters."""
    progress = learner.progress
    counts = counts_of(learner.final())
    if not progress.best_epoch:
        return counts
    return {
        "best model": f"epoch {progress.best_epoch}, {run.best}",
        "best accuracy": f"{progress.best:.2f} %",
        "last accuracy": f"{progress.latest:.2f} %",
        **counts,
    }


def _open_dataset(config: dict[str, Any], run: Run) -> Dataset:
    """The pictures of a run; UserError if a run to be resumed was started with others."""
    try:
        dataset = open_dataset(
            config["data"],
            device=run.device,
            image_size=config["image_size"],
            workers=config["workers"],
        )
    except UserError as error:
        if run.resumed is None:
            raise
        raise UserError(f"{error} (where the pictures are now, --data says)") from error
    if run.resumed is not None and dataset.fingerprint != config["pictures"]:
        raise UserError(
            f"the pictures of {config['data']} are not those that the run in {run.resumed} was "
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
    part = world.part_of(batch_size)
    dataset.num_batches(batch_size)
    joint = batch_size if config["sync_bn"] else part.stop - part.start
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


def _check_soft_symmetry(config: dict[str, Any], model: nn.Module) -> None:
    """Raise UserError if the soft penalty is of weights that cannot be symmetric, or of none."""
    if config["soft_symmetry"]:
        where = default_where(model) if config["where"] is None else config["where"]
        try:
            soft_symmetry_penalty(model, config["soft_norm"], where)
        except (TypeError, ValueError) as error:
            raise UserError(f"--soft-symmetry {config['soft_symmetry']}: {error}") from error


def _facts(config: dict[str, Any], dataset: Dataset, model: nn.Module) -> dict[str, str]:
    """What is trained, and on what, in words."""
    form = "full weights"
    if config["soft_symmetry"]:
        form += f", penalty {config['soft_symmetry']:g}"
    elif config["symm"] != "none":
        form = f"{config['symm']} ({config['axes']})"
    shared = f", shared by {config['share']}" if config["share"] != "none" else ""
    return {
        "pictures": f"{dataset.name}: train {dataset.train_size:,}, valid {dataset.val_size:,}; "
        f"{len(dataset.classes):,} classes",
        "model": f"{config['model']}, {form}{shared}",
        "parameters": counts_of(model)["parameters, training"],
    }


def _folder_name(config: dict[str, Any]) -> str:
    """The name of a new run's folder."""
    parts = [Path(config["data"]).name, config["model"]]
    soft = f"soft{config['soft_symmetry']:g}"
    parts.append(soft if config["soft_symmetry"] else config["symm"].replace(":", "-"))
    if config["axes"] != "channel":
        parts.append(config["axes"])
    if config["share"] != "none":
        parts.append(config["share"])
    return "-".join([*parts, f"seed{config['seed']}"])


if __name__ == "__main__":
    run_program(main)
