"""Model cards: what the hub reads of them is what was said."""

from __future__ import annotations

import pytest

from symrnn.card import Card, Result, yaml

CARD = Card(
    title="avg: a model",
    task="text-generation",
    tags=["lstm", "avg:diag2"],
    summary="A model.",
    facts={"layers": "2", "where": "a|b\nc"},
    counts={"training": "1,234"},
    usage="print(1)",
    data="größer: #1",
    results=[
        Result("perplexity", "perplexity per token", 116.76426723904113, "validation"),
        Result("perplexity", "perplexity per token", 1e-05, "test"),
    ],
    notes=["A remark."],
    license="mit",
)


def test_a_card_reads_from_top_to_bottom() -> None:
    text = CARD.markdown()
    assert text.startswith('---\nlibrary_name: "symrnn"\npipeline_tag: "text-generation"\n')
    _, _, body = text.partition("\n---\n\n")
    assert body.split("\n\n") == [
        "# avg: a model",
        "A model.",
        "|  |  |\n| --- | --- |\n| layers | 2 |\n| where | a\\|b c |",
        "## Results",
        "| measure | of the data's | value |\n| --- | --- | --- |\n"
        "| perplexity per token | validation | 116.76 |\n| perplexity per token | test | 0.00 |",
        "A remark.",
        "## Parameters",
        "|  |  |\n| --- | --- |\n| training | 1,234 |",
        "## Use",
        "```python\nprint(1)\n```\n",
    ]


def test_what_is_not_known_is_left_out() -> None:
    bare = Card("a", "text-generation", [], "A model.", {}, {}, "")
    assert bare.metadata() == {
        "library_name": "symrnn",
        "pipeline_tag": "text-generation",
        "tags": ["symrnn"],
    }
    assert "Results" not in bare.markdown()


@pytest.mark.parametrize(
    "text",
    ["a", "", "yes", "1.5", "a: b", "# a", "- a", "'\"\\", "größer", "a\nb", "\x01 \x85", "{"],
)
def test_yaml_gives_back_what_it_was_made_of(text: str) -> None:
    reader = pytest.importorskip("yaml")
    value = {
        "text": text,
        "others": [1, 2.5, 1e-05, 1e300, True, None, [], {}],
        "nothing": [],
        "a list": [{"first": text, "second": {"third": [text, {"fourth": 4}]}}, text],
    }
    assert reader.safe_load(yaml(value)) == value


def test_the_hub_reads_the_results() -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(CARD.markdown()).data
    assert (data.library_name, data.license, data.pipeline_tag) == (
        "symrnn",
        "mit",
        "text-generation",
    )
    assert data.tags == ["symrnn", "lstm", "avg:diag2"]
    assert data.metrics == ["perplexity"]
    assert data.model_name == CARD.title
    found = [
        (r.metric_type, r.metric_name, r.metric_value, r.dataset_split, r.dataset_name)
        for r in data.eval_results
    ]
    assert found == [
        (result.metric, result.name, result.value, result.split, CARD.data)
        for result in CARD.results
    ]
