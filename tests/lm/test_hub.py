"""Folders of the hub: a model comes back as it was, and its card says what its run recorded."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import lm.evaluate
import lm.generate
import lm.hub
from lm.hub import card_of_run, measured_by, save_run
from lm.model import LanguageModel
from lm.saved import load_saved
from symrnn import count_parameters
from symrnn.files import UserError
from symrnn.hub import HubError

CPU = torch.device("cpu")
NAMES = {"README.md", "config.json", "model.safetensors"}


def logits(model: LanguageModel) -> torch.Tensor:
    """Of some tokens, in evaluation mode."""
    with torch.no_grad():
        return model.eval()(torch.arange(15).view(5, 3) % model.encoder.num_embeddings)[0]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def saved_run(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder made of `finished`; not to be written to."""
    folder = tmp_path_factory.mktemp("hub") / "saved"
    save_run(finished, folder)
    return folder


@pytest.fixture
def folder(saved_run: Path, tmp_path: Path) -> Path:
    """A copy of that, to be written to."""
    return Path(shutil.copytree(saved_run, tmp_path / "folder"))


# ---- a folder on this machine --------------------------------------------------------------------


@pytest.mark.parametrize("run", ["finished", "pieces_run", "gru_run"])
def test_a_run_comes_back_with_its_vocabulary(
    request: pytest.FixtureRequest, tmp_path: Path, without: Callable[..., None], run: str
) -> None:
    without("huggingface_hub")  # which a folder does not need
    saved = load_saved(request.getfixturevalue(run), CPU)
    save_run(saved.path, tmp_path / "folder")
    assert names(tmp_path / "folder") == NAMES
    model = LanguageModel.from_pretrained(tmp_path / "folder")
    assert torch.equal(logits(model), logits(saved.model))
    assert model.codec is not None
    assert model.codec.state() == saved.codec.state()

    model.save_pretrained(tmp_path / "again")
    again = LanguageModel.from_pretrained(str(tmp_path / "again"))
    assert torch.equal(logits(again), logits(saved.model))
    assert again.codec is not None
    assert again.codec.state() == saved.codec.state()


def test_the_file_holds_a_symmetric_matrix_once(saved_run: Path) -> None:
    """And is safetensors, which any reader opens."""
    tensors = safetensors.torch.load_file(saved_run / "model.safetensors")
    model = LanguageModel.from_pretrained(saved_run)
    held = sum(tensor.numel() for tensor in tensors.values())
    assert held == count_parameters(model).deployed
    assert held < count_parameters(model.deployed("plain")).deployed


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symm": "none"},
        {"symm": "tri8", "symm_hh": "if", "symm_ih": "o", "dropout": 0.5},
        {"cell": "gru", "symm": "eigen:3", "tied": True},
        {"cell": "rnn", "symm": "chunk4", "num_layers": 1},
        {"symm": "avg:skew1"},
    ],
    ids=str,
)
def test_a_model_that_no_run_has_trained_comes_back(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = LanguageModel(12, 8, 8, **options)
    assert model.save_pretrained(tmp_path) is None
    back = LanguageModel.from_pretrained(tmp_path)
    assert torch.equal(logits(back), logits(model))
    assert back.configuration() == model.configuration()
    assert back.codec is None
    assert not back.training
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["library_name"], config["kind"]) == ("symrnn", "language model")
    assert config["config"] == model.configuration()


@pytest.mark.parametrize(
    "changed",
    [lambda m: m.hardened(), lambda m: m.deployed("plain"), lambda m: m.double()],
    ids=["hardened", "plain", "double"],
)
def test_what_a_model_becomes_is_saved_too(
    tmp_path: Path, changed: Callable[[LanguageModel], LanguageModel]
) -> None:
    model = changed(LanguageModel(12, 8, 8, symm="none"))
    model.save_pretrained(tmp_path)
    back = LanguageModel.from_pretrained(tmp_path)
    assert back.encoder.weight.dtype == model.encoder.weight.dtype
    torch.testing.assert_close(logits(back), logits(model), rtol=0, atol=1e-6)


def test_the_programs_take_the_folder(
    finished: Path, saved_run: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = []
    for folder in (finished, saved_run):
        lm.generate.main([str(folder), "--threads", "1", "--tokens", "20"])
        lm.evaluate.main([str(folder), "--threads", "1", "--data", str(corpus / "test.txt")])
        lines = capsys.readouterr().out.splitlines()
        said.append([x for x in lines if not re.match("checkpoint|time|tokens per second", x)])
    assert said[0] == said[1]


def test_a_card_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my own words")
    LanguageModel(12, 8, 8).save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my own words"


# ---- the card ------------------------------------------------------------------------------------


def recorded(run: Path, name: str) -> list[float]:
    """What metrics.jsonl has of that name."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def test_the_numbers_are_those_of_the_run(finished: Path, saved_run: Path) -> None:
    valid = min(recorded(finished, "valid/perplexity"))
    (test,) = recorded(finished, "test/perplexity")
    text = (saved_run / "README.md").read_text()
    assert f"| perplexity | validation | {valid:.2f} |" in text
    assert f"| perplexity | test | {test:.2f} |" in text
    assert f"value: {valid!r}\n" in text
    assert f"value: {test!r}\n" in text
    count = count_parameters(load_saved(finished, CPU).model)
    for number in count:
        assert f"{number:,} |" in text
    for fact in ("| trained on | corpus |", "| recipe | zaremba, small |", "avg (hidden ifgo)"):
        assert fact in text


def test_tokens_that_are_no_words_have_a_perplexity_of_each(pieces_run: Path) -> None:
    card = card_of_run(load_saved(pieces_run, CPU))
    assert [(result.name, result.split) for result in card.results] == [
        (f"perplexity per {unit}", split)
        for split in ("validation", "test")
        for unit in ("token", "word")
    ]
    for result, name in zip(card.results[2:], ("perplexity", "word_perplexity"), strict=True):
        assert [result.value] == recorded(pieces_run, f"test/{name}")


def test_a_test_of_an_earlier_best_model_is_not_this_ones(run_copy: Path) -> None:
    """A run that goes on after its test may find a better model."""
    saved = load_saved(run_copy, CPU)
    assert set(measured_by(saved)) == {"validation", "test"}
    metrics = run_copy / "metrics.jsonl"
    best = [x for x in metrics.read_text().splitlines() if '"valid/perplexity"' in x][-1]
    later = json.loads(best) | {"step": 10**6, "epoch": saved.meta["epoch"]}
    later["valid/perplexity"] = saved.meta["valid_perplexity"]
    with metrics.open("a") as file:
        file.write(json.dumps(later) + '\n{"test/perplexity": torn')
    assert set(measured_by(saved)) == {"validation"}


def test_without_the_records_the_card_says_what_the_file_does(
    finished: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(finished / "best.safetensors", tmp_path))
    (result,) = card_of_run(load_saved(file, CPU)).results
    assert result.value == min(recorded(finished, "valid/perplexity"))


def test_nothing_tells_where_it_was_trained(saved_run: Path, corpus: Path) -> None:
    for path in saved_run.iterdir():
        assert str(corpus.parent).encode() not in path.read_bytes()
    config = json.loads((saved_run / "config.json").read_text())["config"]
    assert {"data", "device", "threads"} & config.keys() == set()


@pytest.mark.parametrize("vocabulary", [True, False])
def test_the_program_on_the_card_runs(
    saved_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocabulary: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    if vocabulary:
        shutil.copytree(saved_run, "finished")
        text = Path("finished", "README.md").read_text()
    else:
        LanguageModel(12, 8, 8).save_pretrained("bare")
        text = Path("bare", "README.md").read_text()
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(program, {})
    assert said.getvalue().strip()


# ---- the program ---------------------------------------------------------------------------------


def test_the_program_writes_a_folder_beside_the_run(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lm.hub.main([str(run_copy), "--dry-run", "--license", "mit"]) == 0
    said = capsys.readouterr().out
    assert 'license: "mit"' in said
    assert f"would be written      {run_copy / 'hub'}" in said
    assert not (run_copy / "hub").exists()
    assert lm.hub.main([str(run_copy)]) == 0
    assert names(run_copy / "hub") == NAMES


def test_the_program_refuses_what_is_there(
    run_copy: Path, tmp_path: Path, refused: Callable[..., str], without: Callable[..., None]
) -> None:
    config = (run_copy / "config.json").read_bytes()
    assert "is there already" in refused("hub", run_copy, "--out", run_copy)
    assert (run_copy / "config.json").read_bytes() == config
    assert "there is no such" in refused("hub", tmp_path / "none.safetensors")
    without("huggingface_hub")
    said = refused("hub", run_copy, "--push", "user/name")
    assert said == ("--push user/name needs the huggingface_hub package: pip install 'symrnn[hub]'")
    assert not (run_copy / "hub").exists()


# ---- what is refused -----------------------------------------------------------------------------


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "holds no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: is damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "something else than a model of symrnn"),
        (lambda f: (f / "config.json").write_bytes(b"\xff"), "config.json: is damaged"),
        (lambda f: change(f, library_name="transformers"), "something else than a model"),
        (lambda f: change(f, kind="image network"), "of the kind 'language model', got: 'image"),
        (lambda f: change(f, config={"hidden_size": 9}), "says something else than model.safe"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no model.safetensors"),
        (lambda f: torch.save({}, f / "model.safetensors"), "pickle"),
        (
            lambda f: (f / "model.safetensors").write_bytes(
                (f / "model.safetensors").read_bytes()[:-1]
            ),
            "truncated",
        ),
    ],
)
def test_damaged_and_foreign_folders_are_refused(
    folder: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(folder)
    with pytest.raises(UserError, match=re.escape(words)):
        LanguageModel.from_pretrained(folder)


def test_the_files_of_two_models_are_refused_together(folder: Path, tmp_path: Path) -> None:
    LanguageModel(12, 8, 8).save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "model.safetensors", folder)
    with pytest.raises(HubError, match=r"config\.json says something else than model\.safetensors"):
        LanguageModel.from_pretrained(folder)


@pytest.mark.parametrize("name", ["no/such/folder", "./none", "/none", Path("none")])
def test_a_path_without_a_folder_is_not_asked_of_the_hub(name: str | Path) -> None:
    with pytest.raises(HubError, match="there is no such folder"):
        LanguageModel.from_pretrained(name)


def test_the_folder_of_a_run_is_not_overwritten(run_copy: Path) -> None:
    before = {path: path.read_bytes() for path in run_copy.iterdir() if path.is_file()}
    with pytest.raises(HubError, match="something else than a model of symrnn"):
        LanguageModel(12, 8, 8).save_pretrained(run_copy)
    assert {path: path.read_bytes() for path in run_copy.iterdir() if path.is_file()} == before


def test_a_model_that_could_not_be_read_again_is_not_written(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    model = LanguageModel.from_pretrained(folder)
    model.decoder = torch.nn.Linear(8, 3)  # of another number of tokens than the vocabulary
    with pytest.raises(
        HubError, match=r"was not written: the model could not be read again: decoder.weight has"
    ):
        model.save_pretrained(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_for_the_hub_is_refused_without_it(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="takes private, repo_id with push_to_hub=True only"):
        LanguageModel(12, 8, 8).save_pretrained(tmp_path, repo_id="user/name", private=True)
    assert names(tmp_path) == set()


def test_a_full_disk_is_one_sentence(small_disk: Path) -> None:
    with pytest.raises(HubError, match=r"folder: was not written: .*the disk is full"):
        LanguageModel(5000, 64, 64).save_pretrained(small_disk / "folder")
    assert not {*names(small_disk / "folder")} & NAMES


# ---- the hub -------------------------------------------------------------------------------------


def test_without_huggingface_hub_an_error_says_how_to_get_it(
    without: Callable[..., None],
) -> None:
    without("huggingface_hub")
    with pytest.raises(HubError, match=r"is no folder here.* pip install 'symrnn\[hub\]'"):
        LanguageModel.from_pretrained("user/name")
    with pytest.raises(HubError, match=r"pip install 'symrnn\[hub\]'"):
        LanguageModel(12, 8, 8).push_to_hub("user/name")


def test_a_repository_that_was_downloaded_is_read(saved_run: Path, tmp_path: Path) -> None:
    """The cache as huggingface_hub lays it out."""
    pytest.importorskip("huggingface_hub")
    repository = tmp_path / "models--user--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved_run, repository / "snapshots" / ("0" * 40))
    model = LanguageModel.from_pretrained("user/name", cache_dir=tmp_path, local_files_only=True)
    assert torch.equal(logits(model), logits(LanguageModel.from_pretrained(saved_run)))
    with pytest.raises(HubError, match="user/other: is no folder, and the hub does not give it"):
        LanguageModel.from_pretrained("user/other", cache_dir=tmp_path, local_files_only=True)


def test_what_is_sent_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    sent: dict[str, Any] = {}

    def create(self: Any, repo_id: str, **options: Any) -> Any:
        sent["made"] = (repo_id, options, self.token)
        return hub.RepoUrl(f"https://example.org/{repo_id}", endpoint="https://example.org")

    def upload(self: Any, *, folder_path: Path, **options: Any) -> str:
        shutil.copytree(folder_path, tmp_path / "sent")
        sent["sent"] = options
        return "the commit"

    monkeypatch.setattr(hub.HfApi, "create_repo", create)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload)
    model = LanguageModel(12, 8, 8)
    assert model.push_to_hub("user/name", private=True, token="secret", branch="v1") == "the commit"
    assert sent["made"] == ("user/name", {"private": True, "exist_ok": True}, "secret")
    assert (sent["sent"]["repo_id"], sent["sent"]["revision"]) == ("user/name", "v1")
    assert {*sent["sent"]["allow_patterns"]} == names(tmp_path / "sent") == NAMES
    assert torch.equal(logits(LanguageModel.from_pretrained(tmp_path / "sent")), logits(model))
    assert "# name\n" in (tmp_path / "sent" / "README.md").read_text()

    monkeypatch.setattr(hub.HfApi, "create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(HubError, match="user/name: cannot be sent: division by zero"):
        model.save_pretrained(tmp_path / "a", push_to_hub=True, repo_id="user/name")
