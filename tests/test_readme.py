"""The README's examples run: its ```sh blocks line by line, its ```python blocks whole.

All run in one empty folder, in the order of the README, so that a block may use what an earlier
one left. `scripts/env` and `scripts/check` set up an environment; the tests already run in one, so
`scripts/env COMMAND` runs COMMAND here. An HTML comment on the line above a block says what is
different in the test:

    <!-- test: append --epochs 1 -->    put at the end of each command line of the block
    <!-- test: skip (why) -->           the block is not run
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"

BLOCK = re.compile(
    r"^(?:<!-- test: (?P<rule>.*?) -->\n)?```(?P<language>sh|python)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    body: str
    append: str
    skip: str

    def script(self) -> str:
        """What runs in the shell, or in Python."""
        if self.language == "python":
            return self.body
        commands = self.body.replace("\\\n", " ").splitlines()
        commands = [re.sub(r"\s+#.*", "", command) for command in commands]
        return "\n".join(
            re.sub(r"^scripts/env ", "", command) + self.append
            for command in commands
            if command.strip() and not command.startswith("#")
        )


def read_blocks(text: str) -> list[Block]:
    blocks = []
    for match in BLOCK.finditer(text):
        word, _, rest = (match["rule"] or "").partition(" ")
        if word not in ("", "append", "skip"):
            raise ValueError(f"<!-- test: {match['rule']} --> is neither append nor skip")
        blocks.append(
            Block(
                line=text.count("\n", 0, match.start("language")) + 1,
                language=match["language"],
                body=match["body"],
                append=f" {rest}" if word == "append" else "",
                skip=rest.strip("()") if word == "skip" else "",
            )
        )
    return blocks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize(
    "block", read_blocks(README.read_text()), ids=lambda block: f"line-{block.line}"
)
def test_block(block: Block, folder: Path) -> None:
    if block.skip:
        pytest.skip(f"README.md line {block.line}: {block.skip}")
    root = README.parent
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "MPLBACKEND": "agg",
    }
    program = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else ["python", "-c"]
    run = subprocess.run(
        [*program, block.script()],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, f"{block.script()}\n{run.stdout}"


def test_the_two_commands_stand_in_the_readme() -> None:
    """What a new user types, and what continuous integration calls."""
    bodies = [block.body for block in read_blocks(README.read_text())]
    assert "scripts/env python -m lm.train\n" in bodies
    assert "scripts/check\n" in bodies
    assert "scripts/check" in (README.parent / ".ci" / "run").read_text()


def test_reading_of_blocks() -> None:
    text = (
        "<!-- test: append --epochs 1 -->\n"
        "```sh\n# a remark\nscripts/env python -m a \\\n  --b 2  # why\npython -m c\n```\n\n"
        "<!-- test: skip (long) -->\n```sh\nfalse\n```\n```text\nnot run\n```\n"
    )
    first, second = read_blocks(text)
    assert first.script() == "python -m a    --b 2 --epochs 1\npython -m c --epochs 1"
    assert (second.skip, second.line) == ("long", 10)
    with pytest.raises(ValueError, match="neither append nor skip"):
        read_blocks("<!-- test: maybe -->\n```sh\ntrue\n```\n")
