"""``python -m symrnn.vision.export``: a trained image network as a file that runs without us."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from symrnn import deploy, open_packed
from symrnn.export import (
    Program,
    Tensors,
    export,
    export_parser,
    outcome,
    place_of,
    require,
    table,
)
from symrnn.files import run_program
from symrnn.training.command_line import checkpoint_file, print_table
from symrnn.vision.inference import fold_for_inference
from symrnn.vision.saved import load_model

EXAMPLE = """\
examples:
  python -m symrnn.vision.export                        the newest run in ./runs, its weights
  python -m symrnn.vision.export runs/cifar10-wrn-16-1-bottleneck-tri-seed1 --to onnx
  python -m symrnn.vision.export best.safetensors --to pt2 --out model.pt2

The file takes images (batch, 3, height, width), normalised by the mean and standard deviation that
it names, and gives logits (batch, classes); batch is free. Batch norm is folded into convolutions
where that is exact. The file is compared with the network before it is there: exit code 1 if it
differs by more than float32 explains. docs/deployment.md has what loads each kind.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Export a trained image network: PyTorch's own layers, constant weights."
    options = export_parser("symrnn.vision.export", description, EXAMPLE).parse_args(arguments)
    require(options.to, recurrent=False)
    file = checkpoint_file(options.checkpoint, "symrnn.vision.train")
    model = load_model(file)
    path = place_of(options, file)
    program = program_of(model, open_packed(file).meta)
    print_table({"model": file, **table(program, options.to)})
    if options.dry_run:
        print_table({"would be written": path})
        return 0
    print_table(outcome(export(program, options.to, path)))
    return 0


class _Network(nn.Module):
    """A network by the name of its input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits


def program_of(model: nn.Module, meta: Mapping[str, Any]) -> Program:
    """What leaves of a trained network. meta: of its file."""
    config = meta["config"]
    side: Any = config["image_size"] or model.image_size
    names = ("model", "recipe", "symm", "axes", "where", "share", "dropout", "num_classes")

    def draw(sizes: Mapping[str, int]) -> Tensors:
        generator = torch.Generator().manual_seed(1)
        return (torch.randn(sizes["batch"], 3, side, side, generator=generator),)

    return Program(
        model=model,
        deployed=deploy(fold_for_inference(model), "plain"),
        flat=_Network,
        inputs={"images": ("batch", 3, side, side)},
        outputs={"logits": ("batch", config["num_classes"])},
        draw=draw,
        about={
            "task": "image classification",
            **{name: config.get(name) for name in names},
            **{name: meta.get(name) for name in ("epoch", "accuracy", "classes", "mean", "std")},
        },
    )


if __name__ == "__main__":
    run_program(main)
