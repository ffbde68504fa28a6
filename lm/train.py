"""``python -m lm.train``: train a language model, from its configuration to its test perplexity."""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data import Corpus, DataError, TrainBatches, open_corpus
from lm.model import LanguageModel, State
from lm.options import given, make_parser, resolve, resume_config
from lm.perplexity import Score, cross_entropy, exponential, measure
from lm.recipes import Recipe
from lm.saved import (
    build_model,
    check_machine,
    load_saved,
    model_tensors,
    precision_of,
    print_counts,
    restore_model,
    save_best,
)
from lm.spectrum import spectrum_figure
from symrnn import parameter_groups, soft_symmetry_penalty
from symrnn.files import UserError, run_program
from symrnn.training import (
    CheckpointError,
    Interrupt,
    RunFolder,
    Tracker,
    environment,
    keep_freed_memory,
    load_checkpoint,
    pack_state,
    peak_memory,
    resolve_device,
    rng_state,
    save_checkpoint,
    seed_everything,
    set_rng_state,
    set_threads,
    unpack_state,
)
from symrnn.training.command_line import folder_to_resume, require_compiler, unused_folder


@dataclass
class Progress:
    """Where a run stands; with the tensors in a checkpoint, all it needs to go on exactly."""

    epoch: int = 1  # the epoch under way, from 1
    window: int = 0  # the next window of that epoch
    step: int = 0  # steps done in all
    lr: float = 0.0
    nats: float = 0.0  # sum of the training losses of this epoch, per token
    best: float = math.inf  # the best validation's nats per token
    seconds: float = 0.0  # spent so far, over all resumes
    began: float = 0.0  # ``seconds`` as the epoch under way began


def main(arguments: Sequence[str] | None = None) -> int:
    # ---- configuration -------------------------------------------------------------------------
    options = make_parser().parse_args(arguments)
    resume = folder_to_resume(options.resume, options.out)
    if resume is None:
        config = resolve(given(options))
    else:
        with RunFolder.open(resume) as run:
            config = resume_config(run.config, given(options), run.path)
    device = resolve_device(config["device"])
    check_machine(config, device)
    set_threads(config["threads"])
    if device.type == "cpu":
        keep_freed_memory()
    if config["compile"]:
        require_compiler(device)

    # ---- data ----------------------------------------------------------------------------------
    corpus = _open_corpus(config, resume)
    config |= {"vocabulary": corpus.codec.fingerprint(), "corpus": corpus.fingerprint}
    batches = TrainBatches(corpus.train.ids, config["batch_size"], config["steps"])

    # ---- model ---------------------------------------------------------------------------------
    seed_everything(config["seed"])
    model = build_model(config, len(corpus.codec))
    model.initialize(config["init_range"])
    model.to(device)
    optimizer = torch.optim.SGD(parameter_groups(model, config["lr"]), lr=config["lr"])
    if options.dry_run:
        for name, value in config.items():
            print(f"{name:16} {value}")
        print_counts(model, corpus.codec)
        return 0

    # ---- run -----------------------------------------------------------------------------------
    if resume is None:
        run = RunFolder.create(options.out or _free_folder(config), config)
    else:
        run = RunFolder.open(resume)
    with run:
        print(f"the run is kept in {run.path}", flush=True)
        training = Training(run, config, corpus, batches, model, optimizer, device)
        training.restore()
        with training.logs():
            with Interrupt("ending after this step; the best model is tested") as interrupt:
                training.epochs(interrupt)
            training.report()
    return 0


class Training:
    """The state of a run, and what happens to it: restore, logs, epochs, report."""

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
        self.tested: Score | None = None
        self.clock = time.monotonic()

    def restore(self) -> None:
        """Take up the run's last checkpoint, if there is one."""
        if not self.run.last.exists():
            return
        checkpoint = load_checkpoint(self.run.last)
        restore_model(self.model, checkpoint)
        try:
            state = unpack_state(checkpoint.tensors, checkpoint.meta["state"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["hidden"] is not None:
                self.hidden = tuple(part.to(self.device) for part in state["hidden"])
            self.progress = Progress(**state["progress"])
            set_rng_state(state["rng"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{checkpoint.path}: not a checkpoint that a run goes on from: {error!r}"
            ) from error
        progress = self.progress
        print(f"continuing after step {progress.step}, in epoch {progress.epoch}", flush=True)

    def logs(self) -> Tracker:
        """Open the run's logs, with what they hold up to the step that was restored."""
        begun = self.progress.step > 0
        self.tracker = Tracker(self.run, resume_step=self.progress.step if begun else None)
        if not begun:
            self.tracker.hparams(self.config, {})
            lines = [f"    {name}: {value}" for name, value in environment().items()]
            self.tracker.text("environment", "\n".join(lines))
        return self.tracker

    def epochs(self, interrupt: Interrupt) -> None:
        """Train epoch by epoch, until the last or an interrupt; test the best after the last.

        A checkpoint follows all lines of its step and no other line of that step follows it, so
        that a run killed anywhere and resumed has every line once.
        """
        progress = self.progress
        while progress.epoch <= self.recipe.epochs and not interrupt.requested:
            if self.recipe.schedule == "epochs":
                progress.lr = self.recipe.lr_in(progress.epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = progress.lr * group["lr_scale"]
            self._train_epoch(interrupt)
            if progress.window < len(self.batches):
                return
            self._validate()
            if progress.epoch == self.recipe.epochs:
                self._test()
            progress.epoch += 1
            progress.window = 0
            progress.nats = 0.0
            self.hidden = None
            progress.began = self._seconds()
            self._save_last()

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
                if progress.window == len(self.batches):
                    return  # the checkpoint comes after the validation
                if interrupt.requested or progress.step % self.config["save_every"] == 0:
                    self._save_last()
                if interrupt.requested:
                    return

    def _step(self, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
        """One update; the loss per token in nats, and the gradient's norm before clipping."""
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision():
            logits, hidden = self.forward(inputs, self.hidden)
        self.hidden = tuple(part.detach() for part in hidden)
        loss = cross_entropy(logits, targets).mean()
        value = loss.item()
        self._require_finite(f"perplexity (loss {value:g})", exponential(value))
        if self.recipe.loss == "sum":  # the mean is over steps and batch; Zaremba's over the batch
            loss = loss * self.recipe.steps
        if self.config["soft_symmetry"]:
            penalty = soft_symmetry_penalty(self.model.rnn, self.config["soft_norm"])
            loss = loss + self.config["soft_symmetry"] * penalty
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip).item()
        self._require_finite("gradient's norm", norm)
        self.optimizer.step()
        return value, norm

    def _require_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        progress = self.progress
        kept = [str(file) for file in (self.run.best, self.run.last) if file.exists()]
        raise UserError(
            f"the {what} is {value} in epoch {progress.epoch}, after {progress.window} of its "
            f"{len(self.batches)} windows (step {progress.step}), at learning rate "
            f"{progress.lr:g}: stopped; checkpoints from before: {', '.join(kept) or 'none yet'}"
        )

    def _validate(self) -> None:
        """Measure the validation text, keep the best model, log, and anneal on a plateau."""
        progress = self.progress
        model = self._final()
        score = self._measure(model, "valid")
        nats = score.nats / score.tokens
        self._require_finite(f"validation perplexity (loss {nats:g})", score.perplexity)
        train = exponential(progress.nats / len(self.batches))
        self.tracker.scalars(
            progress.step,
            {
                "valid/loss": nats,
                "valid/perplexity": score.perplexity,
                "valid/word_perplexity": score.word_perplexity,
                "train/epoch_perplexity": train,
                "epoch": progress.epoch,
            },
        )
        self.tracker.figure(progress.step, "recurrent eigenvalues", spectrum_figure(model.rnn))
        print(
            f"epoch {progress.epoch:2}/{self.recipe.epochs}  lr {progress.lr:<8.4g}  "
            f"train {train:8.2f}  valid {score.perplexity:8.2f}{_per_word(score)}  "
            f"{self._seconds() - progress.began:6.1f} s",
            flush=True,
        )
        if nats < progress.best:
            progress.best = nats
            self._save_best(model, score)
        elif self.recipe.schedule == "plateau":
            progress.lr /= self.recipe.lr_divide

    def _test(self) -> None:
        """Measure the test text with the best model, and log it."""
        best = load_saved(self.run.best, self.device, backend=self.config["backend"])
        self.tested = self._measure(best.model, "test")
        self.tracker.scalars(
            self.progress.step,
            {
                "test/loss": self.tested.nats / self.tested.tokens,
                "test/perplexity": self.tested.perplexity,
                "test/word_perplexity": self.tested.word_perplexity,
            },
        )
        metrics = {
            "valid_perplexity": exponential(self.progress.best),
            "test_perplexity": self.tested.perplexity,
        }
        self.tracker.hparams(self.config, metrics)

    def report(self) -> None:
        """Say what came of it: the best model's perplexities, parameters, time and memory."""
        progress = self.progress
        if not self.run.best.exists():  # interrupted before any validation
            model = self._final()
            self._save_best(model, self._measure(model, "valid"))
        best = load_saved(self.run.best, self.device, backend=self.config["backend"])
        valid = best.meta["valid_perplexity"]
        test = self.tested or self._measure(best.model, "test")
        print()
        if progress.epoch <= self.recipe.epochs:
            print(f"interrupted in epoch {progress.epoch}; to go on:")
            print(f"  python -m lm.train --resume {shlex.quote(str(self.run.path))}")
        print(f"best model            epoch {best.meta['epoch']}, {self.run.best}")
        print(f"valid perplexity      {valid:.2f}{self._bound('valid')}")
        print(f"test perplexity       {test.perplexity:.2f}{_per_word(test)}{self._bound('test')}")
        print_counts(best.model, best.codec)
        print(f"time                  {progress.seconds:.1f} s")
        print(f"peak memory           {peak_memory(self.device) / 2**20:.0f} MiB")

    def _seconds(self) -> float:
        """The seconds spent on the run so far, over all resumes."""
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now
        return self.progress.seconds

    def _measure(self, model: LanguageModel, split: str) -> Score:
        return measure(
            model,
            self.corpus.split(split),
            self.corpus.codec.eos_id,
            precision=self.precision,
        )

    def _bound(self, split: str) -> str:
        """The best perplexity per word that any model can reach, where that is known."""
        if self.corpus.entropy is None:
            return ""
        text = self.corpus.split(split)
        unit = "" if text.words == text.tokens else " a word"
        return f"   (best possible {self.corpus.entropy.perplexity[split]:.2f}{unit})"

    def _final(self) -> LanguageModel:
        """The model as it is measured and kept: with soft symmetry, made symmetric."""
        return self.model.hardened() if self.config["soft_symmetry"] else self.model

    def _save_best(self, model: LanguageModel, score: Score) -> None:
        rnn = model.rnn
        save_best(
            self.run.best,
            model,
            {**self.config, "symm": rnn.symm, "symm_hh": rnn.symm_hh},
            self.corpus.codec,
            epoch=self.progress.epoch,
            valid_perplexity=score.perplexity,
        )

    def _save_last(self) -> None:
        weights = [parameter.detach().abs().max() for parameter in self.model.parameters()]
        self._require_finite("largest weight", torch.stack(weights).max().item())
        self._seconds()
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
            {"config": self.config, "codec": self.corpus.codec.state(), "state": packed},
        )


def _open_corpus(config: dict[str, Any], resume: Path | None) -> Corpus:
    """The corpus of a run; UserError if a run to be resumed was started with another."""
    tokenizer, vocab_size = config["tokenizer"], config["vocab_size"]
    if resume is None:
        return open_corpus(config["data"], tokenizer=tokenizer, vocab_size=vocab_size)
    try:
        corpus = open_corpus(config["data"], tokenizer=tokenizer, vocab_size=vocab_size)
    except DataError as error:
        raise DataError(f"{error} (where the corpus is now, --data says)") from error
    marks = {"vocabulary": corpus.codec.fingerprint(), "corpus": corpus.fingerprint}
    for what, mark in marks.items():
        if config[what] != mark:
            raise UserError(
                f"the {what} of {config['data']} is not the one that the run in {resume} was "
                "started with: a run is continued on the same text, tokenizer and vocabulary"
            )
    return corpus


def _free_folder(config: dict[str, Any]) -> Path:
    """A folder in runs/ named after the configuration, that does not exist yet."""
    parts = [Path(config["data"]).name, config["size"]]
    if config["cell"] != "lstm":
        parts.append(config["cell"])
    soft = f"soft{config['soft_symmetry']:g}"
    parts.append(soft if config["soft_symmetry"] else config["symm"].replace(":", "-"))
    if config["recipe"] != "zaremba":
        parts.append(config["recipe"])
    return unused_folder(Path("runs") / "-".join([*parts, f"seed{config['seed']}"]))


def _per_word(score: Score) -> str:
    return f" ({score.word_perplexity:.2f} a word)" if score.words != score.tokens else ""


if __name__ == "__main__":
    run_program(main, DataError)
