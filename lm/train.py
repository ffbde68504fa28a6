"""``python -m lm.train``: train a language model, from its configuration to its test perplexity."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from data import TOKENIZERS, Corpus, DataError, RandomBatches, TrainBatches, open_corpus
from lm.adaptive import AdaptiveDecoder
from lm.learner import LanguageLearner
from lm.model import LanguageModel
from lm.options import (
    TRAINED_UNKNOWN,
    UNTRAINED,
    make_parser,
    resolve,
    resume_config,
    without_effect,
)
from lm.perplexity import Score, Unknown, exponential, measure
from lm.recipes import lr_at, lr_in
from lm.saved import build_model, check_machine, counts_of, load_saved, save_best
from lm.spectrum import spectrum_figure
from lm.start import start_from
from symrnn.files import UserError, run_program
from symrnn.training import World, autocast, seed_everything
from symrnn.training.command_line import given, print_table
from symrnn.training.loop import Run
from symrnn.training.progress import progress_bar


def main(arguments: Sequence[str] | None = None) -> int:
    with World() as world, Run("lm.train", world, "the best model is tested") as run:
        # ---- configuration ---------------------------------------------------------------------
        options = make_parser().parse_args(arguments)
        config = run.configure(options, resolve, resume_config)
        if world.first:
            for sentence in without_effect(given(options), config):
                print(f"notice: {sentence}", file=sys.stderr)

        # ---- data ------------------------------------------------------------------------------
        with world.agreeing():
            check_machine(config, run.device)
        corpus, batches_in = world.one_first(lambda: open_training_corpus(config, run.resumed))
        with world.agreeing():
            if len({*world.gather(corpus.fingerprint)}) > 1:
                raise UserError(
                    f"--data {config['data']} is not the same corpus on all machines: give each "
                    "process the same texts"
                )
        if world.first:
            _warn_of_untrained_unknown(config, corpus)

        # ---- model -----------------------------------------------------------------------------
        with world.agreeing():
            streams = world.part_of(config["batch_size"])
            seed_everything(config["seed"])
            model = build_model(config, len(corpus.codec))
            model.initialize(config["init_range"], config["forget_bias"], config["init"])
            check_parts(config, streams)
            if isinstance(model.decoder, AdaptiveDecoder):
                model.decoder.order_by(corpus.train.counts())
            start = {}
            if config["init_from"] is not None and world.first and not run.begun:
                start = {"starts from": start_from(model, config["init_from"], corpus.codec)}
            model.to(run.device)
        if options.dry_run:
            print_table(config, 16)
            print_table({**counts_of(model, corpus.codec), **start})
            return 0

        # ---- run -------------------------------------------------------------------------------
        with world.agreeing():
            learner = LanguageLearner(model, config, world)
        run.start(
            learner,
            config,
            name=_folder_name(config),
            batches=len(batches_in(1)),
            batch_size=config["steps"] * config["batch_size"],
            unit="tok",
            lowest_is_best=True,
            bounds=_token_bounds(batches_in, config) if config["random_steps"] else None,
            facts=_facts(config, corpus, model) | start,
            meta={"codec": corpus.codec.state()},
        )
        length = None
        if config["schedule"] == "cosine":
            length = sum(len(batches_in(epoch + 1)) for epoch in range(config["epochs"]))
        for epoch in run.epochs(config["epochs"]):
            if config["schedule"] == "epochs":
                run.progress.lr = lr_in(
                    epoch, config["lr"], config["lr_divide"], config["lr_after"]
                )
            windows = _windows(batches_in(epoch), run.progress.batch, streams)
            for inputs, targets in run.steps(windows):
                rate = lr_at(run.progress.step, run.progress.lr, config["warmup"], length)
                learner.set_rate(rate * (len(inputs) / config["steps"]))  # 1 of whole windows
                loss, norm = learner.step(inputs.to(run.device), targets.to(run.device))
                run.require_finite(f"perplexity (loss {loss:g})", exponential(loss))
                run.require_finite("gradient's norm", norm)
                if run.due:
                    values = {
                        "train/loss": loss,
                        "train/perplexity": exponential(loss),
                        "learning_rate": rate,
                        "gradient_norm": norm,
                        "tokens_per_second": run.speed(),
                    }
                    run.log(values, note=f"perplexity {_train_perplexity(run):.1f}")
            if run.stopped:
                break
            with run.measuring():
                rate = lr_at(run.progress.step, run.progress.lr, config["warmup"], length)
                if learner.judge(_validate(run, learner, corpus, rate)):
                    run.finish()
                if epoch == config["epochs"] or run.progress.ended:
                    learner.progress.tested = world.share(lambda: asdict(_test(run, corpus)))
        return run.end(lambda: _results(run, learner, corpus))


def check_parts(config: dict[str, Any], streams: slice) -> None:
    """Raise UserError unless --accumulate divides the streams of this process."""
    if (streams.stop - streams.start) % config["accumulate"]:
        raise UserError(
            f"--accumulate {config['accumulate']} should divide the streams of each process, got: "
            f"{streams.stop - streams.start}"
        )


def _windows(batches: TrainBatches, start: int, streams: slice) -> Iterator[tuple[Tensor, Tensor]]:
    """The windows of an epoch from number ``start`` on, of those streams alone."""
    for number in range(start, len(batches)):
        inputs, targets = batches[number]
        yield inputs[:, streams], targets[:, streams]


def _token_bounds(
    batches_in: Callable[[int], TrainBatches], config: dict[str, Any]
) -> Callable[[int], Sequence[int]]:
    """How many tokens are before each window of an epoch, and in all."""
    return lambda epoch: [config["batch_size"] * place for place in batches_in(epoch).bounds]


def _train_perplexity(run: Run) -> float:
    """Per token, of the epoch so far, while the weights changed."""
    windows = run.done / (run.config["steps"] * run.config["batch_size"])  # of whole length
    return exponential(run.progress.nats / windows)


def _measure(run: Run, model: LanguageModel, corpus: Corpus, split: str) -> Score:
    text = corpus.split(split)
    with progress_bar(text.tokens, 0, f"{split} text", "tok") as bar:
        return measure(
            model,
            text,
            corpus.codec.eos_id,
            precision=autocast(run.config["precision"], run.device),
            stop=run.terminated,
            update=bar.update,
        )


def _validate(run: Run, learner: LanguageLearner, corpus: Corpus, lr: float) -> bool:
    """Measure the validation text, log, and save the best model; whether this is the best.

    lr: the learning rate of the last step.
    """
    model, progress = learner.final(), run.progress
    score = run.world.share(lambda: _measure(run, model, corpus, "valid"))
    nats = score.nats / score.tokens
    run.require_finite(f"validation perplexity (loss {nats:g})", score.perplexity)
    train, unknown = _train_perplexity(run), Unknown.of(corpus.valid, corpus.codec)
    run.log(
        {
            **_scalars("valid", score, corpus),
            "train/epoch_perplexity": train,
            "epoch": progress.epoch,
        }
    )
    if progress.epoch.bit_count() == 1:  # 1, 2, 4, 8, …: it may take as long as an epoch
        run.figure("recurrent eigenvalues", lambda: spectrum_figure(*model.layers))
    print(
        f"epoch {progress.epoch:2}/{run.config['epochs']}  lr {lr:<8.4g}  "
        f"train {train:8.2f}  valid {score.perplexity:8.2f}{_per_unit(score, corpus)}  "
        f"{'unknown words ' + str(unknown) + '  ' if unknown.count else ''}"
        f"{run.epoch_seconds():6.1f} s",
        flush=True,
    )
    learner.progress.validations.append(nats)
    return run.keep_best(nats, lambda path: _save_best(path, run, model, corpus, score))


def _save_best(path: Path, run: Run, model: LanguageModel, corpus: Corpus, score: Score) -> None:
    rnn = model.layers[0]
    config = {**run.config, "symm": rnn.symm, "symm_hh": rnn.symm_hh}
    epoch, perplexity = run.progress.epoch, score.perplexity
    save_best(path, model, config, corpus.codec, epoch=epoch, valid_perplexity=perplexity)


def _scalars(split: str, score: Score, corpus: Corpus) -> dict[str, float]:
    """What is logged of a score."""
    values = {
        "loss": score.nats / score.tokens,
        "perplexity": score.perplexity,
        "word_perplexity": score.word_perplexity,
        "unknown_share": Unknown.of(corpus.split(split), corpus.codec).share,
    }
    if corpus.codec.unit == "character":
        values["bits_per_character"] = score.bits
    return {f"{split}/{name}": value for name, value in values.items()}


def _test(run: Run, corpus: Corpus) -> Score:
    """Measure the test text with the best model, and log it."""
    best = load_saved(run.best, run.device, backend=run.config["backend"])
    score = _measure(run, best.model, corpus, "test")
    run.log(_scalars("test", score, corpus))
    run.figure("eigenvalues, best model", lambda: spectrum_figure(*best.model.layers))
    valid = exponential(run.progress.best)
    run.outcome({"valid_perplexity": valid, "test_perplexity": score.perplexity})
    return score


def _results(run: Run, learner: LanguageLearner, corpus: Corpus) -> dict[str, str]:
    """What came of the run: the best model's perplexities and parameters."""
    progress = learner.progress
    if not run.best.exists():
        if math.isfinite(progress.best):
            raise UserError(f"{run.best}: is missing, the model that validated best")
        model = learner.final()
        score = _measure(run, model, corpus, "valid")
        progress.best = score.nats / score.tokens
        _save_best(run.best, run, model, corpus, score)
    best = load_saved(run.best, run.device, backend=run.config["backend"])
    tokens, words = corpus.valid.tokens, corpus.valid.words
    valid = Score(progress.best * tokens, tokens, words)
    tested = progress.tested  # of a finished run
    test = Score(**tested) if tested else _measure(run, best.model, corpus, "test")
    return {
        "best model": f"epoch {best.meta.get('epoch')}, {run.best}",
        "valid perplexity": _in_words(valid, corpus, "valid"),
        "test perplexity": _in_words(test, corpus, "test"),
        "unknown words": ", ".join(
            f"{split} {Unknown.of(corpus.split(split), corpus.codec)}"
            for split in ("valid", "test")
        ),
        **counts_of(best.model, best.codec),
    }


def _in_words(score: Score, corpus: Corpus, split: str) -> str:
    """A perplexity, what else it is compared by, and the best that can be."""
    return f"{score.perplexity:.2f}{_per_unit(score, corpus)}{_bound(corpus, split)}"


def _bound(corpus: Corpus, split: str) -> str:
    """The best perplexity per word that any model can reach, where that is known."""
    if corpus.entropy is None:
        return ""
    text = corpus.split(split)
    unit = "" if text.words == text.tokens else " a word"
    return f"   (best possible {corpus.entropy.perplexity[split]:.2f}{unit})"


def _per_unit(score: Score, corpus: Corpus) -> str:
    """What else a score is compared by, where tokens are not words."""
    if corpus.codec.unit == "character":
        return f" ({score.bits:.4f} bits a character)"
    return f" ({score.word_perplexity:.2f} a word)" if score.words != score.tokens else ""


def open_training_corpus(
    config: dict[str, Any], resumed: Path | None
) -> tuple[Corpus, Callable[[int], TrainBatches]]:
    """The corpus of a run, and its windows in an epoch, which is counted from 1.

    Raises UserError for what is no corpus, a text that is too short, and if a run to be resumed
    was started with another.
    """
    settings = {name: config[name] for name in ("tokenizer", "vocab_size", "min_count")}
    try:
        corpus = open_corpus(config["data"], **settings)
    except DataError as error:
        where = ""
        if resumed is not None:
            own = config["tokenizer"] in TOKENIZERS
            where = (
                " (where the corpus is now, --data says)"
                if own or os.path.exists(config["tokenizer"])
                else " (a run is continued with its tokenizer's file where it was)"
            )
        raise UserError(f"{error}{where}") from error
    marks = {"vocabulary": corpus.codec.fingerprint(), "corpus": corpus.fingerprint}
    for what, mark in marks.items():
        if config.setdefault(what, mark) != mark:
            raise UserError(
                f"the {what} of {config['data']} is not the one that the run in {resumed} was "
                "started with: a run is continued on the same text, tokenizer and vocabulary"
            )
    config[TRAINED_UNKNOWN] = Unknown.of(corpus.train, corpus.codec).count
    ids, sizes = corpus.train.ids, (config["batch_size"], config["steps"])
    try:
        batches = TrainBatches(ids, *sizes)
    except DataError as error:
        raise UserError(str(error)) from error
    if not config["random_steps"]:
        return corpus, lambda _: batches
    seed = config["seed"]
    return corpus, lambda epoch: RandomBatches(ids, *sizes, seed=seed, epoch=epoch)


def _unknown(corpus: Corpus) -> str:
    """How much the model is measured on that is unknown to it."""
    return ", ".join(
        f"{split} {Unknown.of(corpus.split(split), corpus.codec)}" for split in ("valid", "test")
    )


def _warn_of_untrained_unknown(config: dict[str, Any], corpus: Corpus) -> None:
    """Say so where the vocabulary has an ``<unk>`` that the train text lacks."""
    if corpus.codec.unk_id is None or config[TRAINED_UNKNOWN]:
        return
    remedy = "; --min-count 2 makes the rare words of the train text <unk>"
    if corpus.codec.unit == "piece":  # has one for characters hardly ever met
        remedy = ""
        if not any(Unknown.of(text, corpus.codec).count for text in (corpus.valid, corpus.test)):
            return
    print(f"notice: {UNTRAINED}: {_unknown(corpus)}{remedy}", file=sys.stderr)


def _facts(config: dict[str, Any], corpus: Corpus, model: LanguageModel) -> dict[str, str]:
    """What is trained, and on what, in words."""
    rnn, last = model.layers[0], model.layers[-1].hidden_size
    tokens = [f"{split} {corpus.split(split).tokens:,}" for split in ("train", "valid", "test")]
    form = f"full weights, penalty {config['soft_symmetry']:g}"
    if not config["soft_symmetry"]:
        symmetric = {"hidden": rnn.symm_hh, "input": rnn.symm_ih}
        gates = [f"{weights} {names}" for weights, names in symmetric.items() if names]
        form = f"{config['symm']} ({', '.join(gates)})" if gates else "full weights"
    cutoffs = config["adaptive_softmax"]
    decoder = f", adaptive softmax {' '.join(map(str, cutoffs))}" if cutoffs else ""
    counts, layers = counts_of(model, corpus.codec), f"{config['num_layers']} layers"
    if config["num_layers"] == 1:
        layers = "1 layer"
    return {
        "corpus": f"{corpus.name}: {', '.join(tokens)} tokens; {counts['vocabulary size']} types",
        "model": f"{config['cell']}, {layers} of {config['hidden_size']}, "
        f"{f'the last of {last}, ' * (last != config['hidden_size'])}"
        f"embedding {config['embedding_size']}, {form}{decoder}",
        "parameters": f"{counts['parameters, training']}, of these recurrent "
        f"{counts['parameters, recurrent']}",
    }


def _folder_name(config: dict[str, Any]) -> str:
    """The name of a new run's folder."""
    parts = [Path(config["data"]).name, config["size"]]
    if config["cell"] != "lstm":
        parts.append(config["cell"])
    soft = f"soft{config['soft_symmetry']:g}"
    parts.append(soft if config["soft_symmetry"] else config["symm"].replace(":", "-"))
    if config["recipe"] != "zaremba":
        parts.append(config["recipe"])
    return "-".join([*parts, f"seed{config['seed']}"])


if __name__ == "__main__":
    run_program(main, DataError)
