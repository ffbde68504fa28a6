"""``python -m lm.train``: train a language model, from its configuration to its test perplexity."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm import tqdm

from data import Corpus, DataError, TrainBatches, open_corpus
from lm.model import LanguageModel, State
from lm.options import given, make_parser, resolve, resume_config
from lm.perplexity import Score, exponential, measure
from lm.recipes import Recipe
from lm.saved import build_model, model_tensors, precision_of, restore_model
from lm.spectrum import spectrum_figure
from symrnn import count_parameters
from symrnn.training import (
    Interrupt,
    RunFolder,
    Tracker,
    UserError,
    environment,
    load_checkpoint,
    pack_state,
    peak_memory,
    resolve_device,
    rng_state,
    run_program,
    save_checkpoint,
    seed_everything,
    set_rng_state,
    set_threads,
    unpack_state,
)


@dataclass
class Progress:
    """Where a run stands; with the tensors in a checkpoint, all it needs to go on exactly."""

    epoch: int = 1  # the epoch under way, from 1
    window: int = 0  # the next window of that epoch
    step: int = 0  # steps done in all
    lr: float = 0.0
    nats: float = 0.0  # sum of the training losses of this epoch, per token
    best: float = math.inf  # the best validation's nats per token
    best_epoch: int = 0
    seconds: float = 0.0  # trained and evaluated so far, over all resumes


def main(arguments: Sequence[str] | None = None) -> int:
    # ---- configuration -------------------------------------------------------------------------
    options = make_parser().parse_args(arguments)
    resume = options.out if options.resume is True else options.resume
    if options.resume is True and resume is None:
        raise UserError("--resume wants the run's folder: --resume FOLDER, or --out FOLDER --resume")
    if resume is None:
        config = resolve(given(options))
        run = None
    else:
        run = RunFolder.open(resume)
        config = resume_config(run.config, given(options), run.path)
    device = resolve_device(config["device"])
    set_threads(config["threads"])
    if config["compile"]:
        _require_compiler(device)

    # ---- data ----------------------------------------------------------------------------------
    corpus = open_corpus(
        config["data"], tokenizer=config["tokenizer"], vocab_size=config["vocab_size"]
    )
    marks = {"vocabulary": corpus.codec.fingerprint(), "corpus": corpus.fingerprint}
    if run is not None:
        _same_corpus(run, marks)
    config |= marks
    batches = TrainBatches(corpus.train.ids, config["batch_size"], config["steps"])

    # ---- model ---------------------------------------------------------------------------------
    seed_everything(config["seed"])
    model = build_model(config, len(corpus.codec))
    model.initialize(config["init_range"])
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
    if options.dry_run:
        for name, value in config.items():
            print(f"{name:16} {value}")
        _print_counts(model, corpus)
        return 0

    # ---- run -----------------------------------------------------------------------------------
    if run is None:
        run = RunFolder.create(options.out or _free_folder(config), config)
    training = Training(run, config, corpus, batches, model, optimizer, device)
    with run:
        training.restore()
        with Interrupt("ending after this step") as interrupt:
            training.epochs(interrupt)
        training.finish(interrupt.requested)
    return 0


class Training:
    """The state of a run, and what happens to it: restore, epochs, finish."""

    def __init__(
        self,
        run: RunFolder,
        config: dict[str, Any],
        corpus: Corpus,
        batches: TrainBatches,
        model: LanguageModel,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
    ) -> None:
        self.run = run
        self.config = config
        self.corpus = corpus
        self.batches = batches
        self.model = model
        self.optimizer = optimizer
        self.device = device
        self.precision = precision_of(config, device)
        self.forward = torch.compile(model) if config["compile"] else model
        self.recipe = Recipe(**{field.name: config[field.name] for field in fields(Recipe)})
        self.progress = Progress(lr=config["lr"])
        self.hidden: State | None = None
        self.clock = time.monotonic()

    def restore(self) -> None:
        """Take up the run's last checkpoint, if there is one, and open its logs."""
        step = None
        if self.run.last.exists():
            checkpoint = load_checkpoint(self.run.last)
            restore_model(self.model, checkpoint)
            state = unpack_state(checkpoint.tensors, checkpoint.meta["state"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["hidden"] is not None:
                self.hidden = tuple(part.to(self.device) for part in state["hidden"])
            self.progress = Progress(**state["progress"])
            set_rng_state(state["rng"])
            step = self.progress.step
            print(f"continuing {self.run.path} after step {step}, epoch {self.progress.epoch}")
        self.tracker = Tracker(self.run, resume_step=step)
        if step is None:
            self.tracker.hparams(self.config, {})
            lines = [f"    {name}: {value}" for name, value in environment().items()]
            self.tracker.text("environment", "\n".join(lines))

    def epochs(self, interrupt: Interrupt) -> None:
        """Train epoch by epoch, until the last or an interrupt."""
        progress = self.progress
        while progress.epoch <= self.recipe.epochs:
            started = time.monotonic()
            if self.recipe.schedule == "epochs":
                progress.lr = self.recipe.lr_in(progress.epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = progress.lr
            self._train_epoch(interrupt)
            if interrupt.requested:
                return
            self._end_epoch(started)

    def _train_epoch(self, interrupt: Interrupt) -> None:
        progress = self.progress
        per_window = self.recipe.steps * self.recipe.batch_size
        since, first = time.perf_counter(), progress.window
        self.model.train()
        bar = tqdm(
            total=len(self.batches) * per_window,
            initial=progress.window * per_window,
            desc=f"epoch {progress.epoch}/{self.recipe.epochs}",
            unit="tok",
            unit_scale=True,
            leave=False,
            dynamic_ncols=True,
            disable=None,  # where nobody watches, the line at the end of each epoch is enough
        )
        with bar:
            while progress.window < len(self.batches):
                inputs, targets = self.batches[progress.window]
                loss, norm = self._step(inputs.to(self.device), targets.to(self.device))
                progress.nats += loss
                progress.window += 1
                progress.step += 1
                bar.update(per_window)
                if progress.step % self.config["log_every"] == 0:
                    now = time.perf_counter()
                    speed = (progress.window - first) * per_window / (now - since)
                    since, first = now, progress.window
                    running = exponential(progress.nats / progress.window)
                    bar.set_postfix_str(f"perplexity {running:.1f}")
                    self.tracker.scalars(
                        progress.step,
                        {
                            "train/loss": loss,
                            "train/perplexity": exponential(loss),
                            "learning_rate": progress.lr,
                            "gradient_norm": norm,
                            "tokens_per_second": speed,
                        },
                    )
                if interrupt.requested or progress.step % self.config["save_every"] == 0:
                    self._save_last()
                if interrupt.requested:
                    return

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
        """One update; the loss per token in nats, and the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        hidden = None if self.hidden is None else tuple(part.detach() for part in self.hidden)
        with self.precision():
            logits, self.hidden = self.forward(inputs, hidden)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        value = loss.item()
        self._finite("loss", value)
        # The mean is over steps and batch; Zaremba's loss is summed over the steps.
        (loss * self.recipe.steps if self.recipe.loss == "sum" else loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip).item()
        self._finite("gradient's norm", norm)
        self.optimizer.step()
        return value, norm

    def _finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        kept = self.run.last if self.run.last.exists() else "none was saved yet"
        raise UserError(
            f"the {what} is {value} in epoch {self.progress.epoch}, window "
            f"{self.progress.window + 1} of {len(self.batches)} (step {self.progress.step + 1}), "
            f"at learning rate {self.progress.lr:g}: stopped; the last good checkpoint: {kept}"
        )

    def _end_epoch(self, started: float) -> None:
        """Validate, keep the best, log, and step to the next epoch."""
        progress = self.progress
        score = self._measure("valid")
        nats = score.nats / score.tokens
        train = progress.nats / len(self.batches)
        self.tracker.scalars(
            progress.step,
            {
                "valid/loss": nats,
                "valid/perplexity": score.perplexity,
                "valid/word_perplexity": score.word_perplexity,
                "train/epoch_perplexity": exponential(train),
                "epoch": progress.epoch,
            },
        )
        self.tracker.figure(progress.step, "recurrent eigenvalues", spectrum_figure(self.model.rnn))
        lr = progress.lr
        if nats < progress.best:
            progress.best, progress.best_epoch = nats, progress.epoch
            self._save_best(score)
        elif self.recipe.schedule == "plateau":
            progress.lr /= self.recipe.lr_divide
        print(
            f"epoch {progress.epoch:2}/{self.recipe.epochs}  lr {lr:<8.4g}  "
            f"train {exponential(train):8.2f}  valid {score.perplexity:8.2f}{_per_word(score)}  "
            f"{time.monotonic() - started:6.1f} s",
            flush=True,
        )
        progress.epoch += 1
        progress.window = 0
        progress.nats = 0.0
        self.hidden = None
        self._save_last()

    def finish(self, interrupted: bool) -> None:
        """Report the best model's test perplexity, parameters, time and memory."""
        progress = self.progress
        if not self.run.best.exists():  # interrupted before any validation
            self._save_best(self._measure("valid"))
        best = load_checkpoint(self.run.best)
        restore_model(self.model, best)
        test = self._measure("test")
        valid = best.meta["valid_perplexity"]
        self.tracker.scalars(
            progress.step,
            {"test/loss": test.nats / test.tokens, "test/perplexity": test.perplexity},
        )
        if not interrupted:
            self.tracker.hparams(
                self.config, {"valid_perplexity": valid, "test_perplexity": test.perplexity}
            )
        self.tracker.close()
        print()
        if interrupted:
            print(f"interrupted in epoch {progress.epoch}; to go on:")
            print(f"  python -m lm.train --resume {self.run.path}")
        print(f"best model            epoch {best.meta['epoch']}, {self.run.best}")
        print(f"valid perplexity      {valid:.2f}{self._bound('valid')}")
        print(f"test perplexity       {test.perplexity:.2f}{_per_word(test)}{self._bound('test')}")
        _print_counts(self.model, self.corpus)
        print(f"time                  {progress.seconds:.1f} s")
        print(f"peak memory           {peak_memory(self.device) / 2**20:.0f} MiB")

    def _measure(self, split: str) -> Score:
        return measure(
            self.model,
            self.corpus.split(split),
            self.corpus.codec.eos_id,
            precision=self.precision,
        )

    def _bound(self, split: str) -> str:
        """The best perplexity any model can reach, where that is known."""
        if self.corpus.entropy is None:
            return ""
        return f"   (best possible {self.corpus.entropy.perplexity[split]:.2f})"

    def _meta(self) -> dict[str, Any]:
        return {"config": self.config, "codec": self.corpus.codec.state()}

    def _save_best(self, score: Score) -> None:
        save_checkpoint(
            self.run.best,
            model_tensors(self.model),
            {**self._meta(), "epoch": self.progress.epoch, "valid_perplexity": score.perplexity},
        )

    def _save_last(self) -> None:
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now
        self.tracker.flush()  # first the lines, then the checkpoint that relies on them
        state = {
            "optimizer": self.optimizer.state_dict(),
            "hidden": self.hidden,
            "progress": asdict(self.progress),
            "rng": rng_state(),
        }
        tensors, packed = pack_state(state, "state")
        save_checkpoint(
            self.run.last,
            {**model_tensors(self.model), **tensors},
            {**self._meta(), "state": packed},
        )


def _same_corpus(run: RunFolder, marks: dict[str, str]) -> None:
    for what, mark in marks.items():
        if run.config.get(what) != mark:
            raise UserError(
                f"the {what} is not the one that the run in {run.path} was started with: "
                "a run is continued on the same text, tokenizer and vocabulary"
            )


def _free_folder(config: dict[str, Any]) -> Path:
    """A folder in runs/ named after the configuration, that does not exist yet."""
    parts = [Path(config["data"]).name, config["size"], config["symm"].replace(":", "-")]
    if config["recipe"] != "zaremba":
        parts.append(config["recipe"])
    name = "-".join([*parts, f"seed{config['seed']}"])
    folder, again = Path("runs") / name, 1
    while folder.exists():
        again += 1
        folder = Path("runs") / f"{name}-{again}"
    return folder


def _require_compiler(device: torch.device) -> None:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise UserError("--compile needs a C++ compiler on the CPU, and none (g++) is installed")


def _print_counts(model: LanguageModel, corpus: Corpus) -> None:
    count = count_parameters(model)
    print(f"vocabulary            {len(corpus.codec):,}")
    print(f"parameters, training  {count.training:,}")
    print(f"parameters, deployed  {count.deployed:,}")
    print(f"parameters, recurrent {count.recurrent:,}")


def _per_word(score: Score) -> str:
    return f" ({score.word_perplexity:.2f} a word)" if score.words != score.tokens else ""


if __name__ == "__main__":
    run_program(main, DataError)
