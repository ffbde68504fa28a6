"""The examples of the documents run: ```sh blocks line by line, ```python blocks whole.

The documents are README.md, those in docs/ and results/README.md. The blocks of one run in one
empty folder, in their order, so that a block may use what an earlier one left. `scripts/env` and
`scripts/check` set up an environment; the tests already run in one, so `scripts/env COMMAND` runs
COMMAND here. An HTML comment on the line above a block says what is different in the test:

    <!-- test: append --epochs 1 -->    put at the end of each command line of the block
    <!-- test: needs kernels cc -->     run only where the native kernels, and the command cc, are
    <!-- test: needs onnx -->           likewise a package of Python
    <!-- test: file layer.c -->         written to a file of that name, in any language
    <!-- test: skip (why) -->           the block is not run
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
import worlds

from symrnn import native

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted(ROOT.glob("docs/*.md")), ROOT / "results" / "README.md"]

BLOCK = re.compile(
    r"^(?:<!-- test: (?P<rule>.*?) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
RULES = ("", "append", "needs", "file", "skip")


@dataclass(frozen=True)
class Block:
    """line: of the document.  rule, argument: of the comment above it, "" where there is none."""

    line: int
    language: str
    body: str
    rule: str
    argument: str

    def script(self) -> str:
        """What runs in the shell, or in Python."""
        if self.language == "python":
            return self.body
        append = f" {self.argument}" if self.rule == "append" else ""
        commands = self.body.replace("\\\n", " ").splitlines()
        commands = [re.sub(r"\s+#.*", "", command) for command in commands]
        return "\n".join(
            re.sub(r"^scripts/env ", "", command) + append
            for command in commands
            if command.strip() and not command.startswith("#")
        )

    def commands(self) -> list[list[str]]:
        """The programs that run, in order; a shell is one only where a line wants it."""
        if self.language == "python":
            return [["python", "-c", self.script()]]
        lines = self.script().splitlines()
        if all(re.fullmatch(r"python -m [^|&;<>$`*~(){}]*", line) for line in lines):
            return [shlex.split(line) for line in lines]
        return [["bash", "-euo", "pipefail", "-c", self.script()]]

    def why_not(self) -> str:
        """Why it is not run; "" where it is."""
        if self.rule == "skip":
            return self.argument.strip("()")
        needed = self.argument.split() if self.rule == "needs" else []
        if "kernels" in needed and not native.available():
            return native.why_not()
        missing = [c for c in needed if c != "kernels" and not (shutil.which(c) or find_spec(c))]
        return f"there is no {missing[0]}" if missing else ""


def read_blocks(text: str) -> list[Block]:
    """The blocks of a document that are run, or written to a file."""
    blocks = []
    for match in BLOCK.finditer(text):
        rule, _, argument = (match["rule"] or "").partition(" ")
        if rule not in RULES:
            raise ValueError(f"<!-- test: {match['rule']} --> is none of {', '.join(RULES[1:])}")
        if match["language"] in ("sh", "python") or rule == "file":
            line = text.count("\n", 0, match.start("language")) + 1
            blocks.append(Block(line, match["language"], match["body"], rule, argument))
    return blocks


def name(document: Path) -> str:
    return document.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_examples_run(
    document: Path,
    tmp_path: Path,
    forks: multiprocessing.context.ForkServerContext,
    subtests: pytest.Subtests,
) -> None:
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "MPLBACKEND": "agg",
    }
    for block in read_blocks(document.read_text()):
        with subtests.test(f"{name(document)} line {block.line}"):
            if block.rule == "file":
                (tmp_path / block.argument).write_text(block.body)
                continue
            if why_not := block.why_not():
                pytest.skip(why_not)
            for command in block.commands():
                if command[0] == "python":
                    code, output = run_python(forks, command[1:], tmp_path)
                else:
                    run = subprocess.run(
                        command,
                        cwd=tmp_path,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        text=True,
                    )
                    code, output = run.returncode, run.stdout
                assert code == 0, f"{block.script()}\n{output}"


def run_python(
    forks: multiprocessing.context.ForkServerContext, arguments: list[str], folder: Path
) -> tuple[int | None, str]:
    """Exit code and output of `python` with those arguments, in a process that has torch loaded."""
    output = folder / ".output"
    output.write_text("")
    environment = {"PWD": str(folder), "MPLBACKEND": "agg"}
    process = forks.Process(target=worlds.python, args=(arguments, environment, str(output)))
    process.start()
    process.join()
    return process.exitcode, output.read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    paths = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [p for p in paths if "://" not in p and not (document.parent / p).exists()]
    assert not missing


def test_the_two_commands_stand_in_the_readme() -> None:
    """What a new user types, and what continuous integration calls."""
    bodies = [block.body for block in read_blocks(README.read_text())]
    assert "scripts/env python -m lm.train\n" in bodies
    assert "scripts/check\n" in bodies
    assert "scripts/check" in (ROOT / ".ci" / "run").read_text()


def test_reading_of_blocks() -> None:
    text = (
        "<!-- test: append --epochs 1 -->\n"
        "```sh\n# a remark\nscripts/env python -m a \\\n  --b 2  # why\npython -m c\n```\n\n"
        "<!-- test: skip (long) -->\n```sh\nfalse\n```\n```text\nnot run\n```\n"
        "<!-- test: file a.c -->\n```c\n#include <a.h>\n```\n"
        "<!-- test: needs no-such-command -->\n```sh\ntrue\n```\n"
    )
    first, second, third, fourth = read_blocks(text)
    assert first.commands() == [
        ["python", "-m", "a", "--b", "2", "--epochs", "1"],
        ["python", "-m", "c", "--epochs", "1"],
    ]
    assert fourth.commands() == [["bash", "-euo", "pipefail", "-c", "true"]]
    assert first.script() == "python -m a    --b 2 --epochs 1\npython -m c --epochs 1"
    assert (first.why_not(), second.why_not(), second.line) == ("", "long", 10)
    assert (third.argument, third.body) == ("a.c", "#include <a.h>\n")
    assert fourth.why_not() == "there is no no-such-command"
    with pytest.raises(ValueError, match="none of append, needs, file, skip"):
        read_blocks("<!-- test: maybe -->\n```sh\ntrue\n```\n")
