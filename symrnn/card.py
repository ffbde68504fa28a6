"""Model cards: what a model is, was trained on and measured to be, as Hugging Face's hub shows it.

A card is Markdown with YAML before it, which the hub reads: the library, tags, and the results as a
"model-index". It says what it is given and nothing else; a number that is not known is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """A measurement of a model.

    metric: as the hub names it, such as "perplexity".
    name: in words, such as "perplexity per token".
    value: the number.
    split: of the data set, "validation" or "test".
    """

    metric: str
    name: str
    value: float
    split: str


@dataclass(frozen=True)
class Card:
    """What stands on a card.

    title: the model's name.
    task: one of the hub's, such as "text-generation".
    tags: for its search.
    summary: a paragraph.
    facts: what it is and how it was trained, by name.
    counts: numbers of parameters, by what is counted.
    usage: a program in Python that loads it.
    data: the name of what it was trained and measured on.
    results: measured on that.
    notes: paragraphs below the results.
    license: the model's, as the hub names it, such as "mit".
    """

    title: str
    task: str
    tags: Sequence[str]
    summary: str
    facts: Mapping[str, str]
    counts: Mapping[str, str]
    usage: str
    data: str | None = None
    results: Sequence[Result] = ()
    notes: Sequence[str] = ()
    license: str | None = None

    def markdown(self) -> str:
        """The card, as README.md holds it."""
        parts = [f"---\n{yaml(self.metadata())}---", f"# {self.title}", self.summary]
        parts.append(_table(("", ""), self.facts.items()))
        if self.results:
            rows = [(result.name, result.split, f"{result.value:.2f}") for result in self.results]
            parts += ["## Results", _table(("measure", "of the data's", "value"), rows)]
        parts += self.notes
        parts += ["## Parameters", _table(("", ""), self.counts.items())]
        parts += ["## Use", f"```python\n{self.usage.strip()}\n```"]
        return "\n\n".join(parts) + "\n"

    def metadata(self) -> dict[str, Any]:
        """What the YAML says, without what is not known."""
        said: dict[str, Any] = {"library_name": "symrnn", "pipeline_tag": self.task}
        if self.license is not None:
            said["license"] = self.license
        said["tags"] = ["symrnn", *self.tags]
        if self.results:
            said["metrics"] = sorted({result.metric for result in self.results})
            said["model-index"] = [
                {"name": self.title, "results": [*map(self._entry, self.results)]}
            ]
        return said

    def _entry(self, result: Result) -> dict[str, Any]:
        data = self.data or "unknown"
        return {
            "task": {"type": self.task},
            "dataset": {"type": data, "name": data, "split": result.split},
            "metrics": [{"type": result.metric, "value": result.value, "name": result.name}],
        }


def _table(head: Sequence[str], rows: Any) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def yaml(value: Mapping[str, Any]) -> str:
    """JSON's objects, lists, strings and numbers as YAML in lines; strings in quotes."""
    return "".join(f"{line}\n" for line in _lines(value))


def _lines(value: Any) -> list[str]:
    if isinstance(value, float) and "." not in repr(value):  # YAML takes 1e-05 for a string
        return [repr(value).replace("e", ".0e")]
    if isinstance(value, Mapping) and value:
        lines = []
        for key, item in value.items():
            below = _lines(item)
            if isinstance(item, Mapping | list) and item:
                lines += [f"{key}:", *(f"  {line}" for line in below)]
            else:
                lines.append(f"{key}: {below[0]}")
        return lines
    if isinstance(value, list) and value:
        lines = []
        for item in value:
            first, *rest = _lines(item)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        return lines
    return [json.dumps(value)]  # of one line, and YAML too
