"""Images per second of the vision module: training, inference, and the data pipeline's share.

    python scripts/benchmarks/vision.py
    python scripts/benchmarks/vision.py --device cuda --seconds 10

Training: forward, loss, backward and update of networks with a symmetric form beside the same
network with plain weights, in turn. Inference: `fold_for_inference` of a symmetric network beside
the network itself and beside a plain one of the same shape, folded too. Pipeline: making a batch of
CIFAR's size (gathered, cropped, flipped, normalised) against the training step that uses it.
Medians; random weights and pictures.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from report import explanation, make_parser, table, write_report
from timing import Call, Peer, interleaved, ratio
from torch.nn import functional as F
from tqdm import tqdm

from symrnn import parameter_groups
from symrnn.training import keep_freed_memory, resolve_device, set_threads
from symrnn.vision import create_model, fold_for_inference
from symrnn.vision.datasets import open_dataset

# Network, form, batch (the recipe's where that does not take minutes a step), and the goal for its
# images a second over those of plain weights.
TRAINING = [
    ("wrn-16-1-bottleneck", "tri", 128, 0.95),
    ("mobilenet", "tri", 128, 0.95),
    ("vgg-19", "tri", 128, 0.95),
    ("wrn-28-10-basic", "block4", 16, 1.15),
]
# Network, its options, batch.
INFERENCE: list[tuple[str, dict[str, Any], int]] = [
    ("wrn-16-1-bottleneck", {"symm": "tri"}, 128),
    ("wrn-16-4-bottleneck", {"symm": "tri", "share": "stage"}, 32),
    ("mobilenet", {"symm": "tri"}, 32),
    ("vgg-19", {"symm": "block4"}, 32),
    ("diracnet-10-1", {"symm": "tri"}, 128),
]
PIPELINE = ("wrn-16-1-bottleneck", 128)
SEED = 0


def training_step(name: str, symm: str, batch: int, options: argparse.Namespace) -> Call:
    """One step of a fresh network on one batch."""
    device = options.device
    torch.manual_seed(SEED)
    model = create_model(name, symm=symm).to(device, memory_format=options.format)
    groups = parameter_groups(model, 0.01)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x = torch.randn(batch, 3, 32, 32, device=device).contiguous(memory_format=options.format)
    y = torch.randint(10, (batch,), device=device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def forward(model: torch.nn.Module, batch: int, options: argparse.Namespace) -> Call:
    model = model.eval().to(options.device, memory_format=options.format)
    x = torch.randn(batch, 3, 32, 32, device=options.device)
    x = x.contiguous(memory_format=options.format)

    def run() -> None:
        with torch.inference_mode():
            model(x)

    return run


def timed(calls: list[Call], seconds: float) -> list[Any]:
    return interleaved([Peer("", call) for call in calls], seconds)


def main() -> None:
    parser = make_parser(__doc__, "results/vision_speed.md")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=25, help="for each case (25)")
    options = parser.parse_args()
    options.device = resolve_device(options.device)
    options.format = torch.channels_last
    set_threads(options.threads)
    if options.device.type == "cpu":
        keep_freed_memory()
    bar = tqdm(total=len(TRAINING) + len(INFERENCE) + 1)

    trained = []
    for name, symm, batch, goal in TRAINING:
        bar.set_description(f"training {name}")
        calls = [training_step(name, form, batch, options) for form in (symm, "none")]
        ours, plain = timed(calls, options.seconds)
        speed = ratio(plain, ours)
        trained.append(
            [
                f"{name}, {symm}, batch {batch}",
                *(f"{batch / one.median:,.1f}" for one in (ours, plain)),
                f"{speed:.3f}",
                f"≥ {goal}",
                "met" if speed >= goal else "missed",
            ]
        )
        bar.update()

    folded = []
    for name, form, batch in INFERENCE:
        bar.set_description(f"inference {name}")
        torch.manual_seed(SEED)
        symmetric, plain_model = create_model(name, **form), create_model(name)
        models = [fold_for_inference(symmetric), fold_for_inference(plain_model), symmetric]
        ours, plain, before = timed([forward(m, batch, options) for m in models], options.seconds)
        folded.append(
            [
                f"{name}, {' and '.join(form.values())}, batch {batch}",
                *(f"{batch / one.median:,.0f}" for one in (before, ours, plain)),
                f"{ratio(plain, ours):.3f}",
                f"{ratio(before, ours):.2f}",
            ]
        )
        bar.update()

    name, batch = PIPELINE
    bar.set_description("pipeline")
    dataset, made = open_dataset("shapes", device=options.device), iter(())

    def next_batch() -> None:
        nonlocal made
        if next(made, None) is None:  # an epoch ended
            made = dataset.train_batches(0, batch, seed=1)
            next(made)

    calls = [next_batch, training_step(name, "none", batch, options)]
    batches, step = timed(calls, options.seconds)
    bar.close()
    share = batches.median / (batches.median + step.median)

    write_report(
        options.out,
        f"Speed of the vision module on {options.device.type}",
        [
            *explanation(__doc__),
            "Pictures of 32×32, float32, channels last.",
            "## Training\n\nImages a second, and the median over steps of the ratio to plain "
            "weights.",
            table(["", "symmetric", "plain", "ratio", "goal", ""], trained),
            "## Inference\n\nImages a second; the ratios are those of the folded network to the "
            "plain folded one (the goal is equality) and to itself before folding.",
            table(["", "as trained", "folded", "plain, folded", "to plain", "to itself"], folded),
            "## Pipeline\n\n"
            f"A batch of {batch} pictures takes {1e3 * batches.median:.2f} ms to make, "
            f"{100 * share:.2f} % of a training step of {name} with it (goal: under 5 %).",
        ],
        seed=SEED,
    )


if __name__ == "__main__":
    main()
