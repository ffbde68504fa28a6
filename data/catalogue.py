"""The corpora that can be fetched by name: where they lie, what they are and how large.

Counts are of words between white space and one `<eos>` per line (for WikiText those of table 1 of
Merity et al. 2016, arXiv 1609.07843).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SPLITS = ("train", "valid", "test")
"""The parts of a corpus, each a text."""


@dataclass(frozen=True)
class RemoteFile:
    """A file that several addresses serve alike.

    name: what it is called here.
    addresses: tried in this order.
    sha256, size: of its contents; size in bytes.
    members: for a zip archive, which of its members becomes which file here; else empty.
    """

    name: str
    addresses: tuple[str, ...]
    sha256: str
    size: int
    members: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CatalogueEntry:
    """One corpus.

    files: what is downloaded. All together give train.txt, valid.txt and test.txt.
    tokens: per split, `<eos>` counted.
    types: distinct tokens of the train text, `<eos>` counted.
    """

    title: str
    licence: str
    files: tuple[RemoteFile, ...]
    tokens: Mapping[str, int]
    types: int


def _ptb(split: str, sha256: str, size: int) -> RemoteFile:
    places = ("wojzaremba", "tomsercu")
    return RemoteFile(
        f"{split}.txt",
        tuple(
            f"https://raw.githubusercontent.com/{place}/lstm/master/data/ptb.{split}.txt"
            for place in places
        ),
        sha256,
        size,
    )


def _wikitext(name: str, sha256: str, size: int) -> RemoteFile:
    places = (
        "https://wikitext.smerity.com",
        "https://s3.amazonaws.com/research.metamind.io/wikitext",
    )
    return RemoteFile(
        f"{name}-v1.zip",
        tuple(f"{place}/{name}-v1.zip" for place in places),
        sha256,
        size,
        {f"{name}/wiki.{split}.tokens": f"{split}.txt" for split in SPLITS},
    )


_WIKITEXT_LICENCE = "Creative Commons Attribution-ShareAlike 3.0 (text of Wikipedia)"

CATALOGUE: dict[str, CatalogueEntry] = {
    "ptb": CatalogueEntry(
        title="Penn Treebank, words, as prepared by Mikolov et al. 2010",
        licence="Wall Street Journal text, copyright Dow Jones; Linguistic Data Consortium "
        "LDC99T42: for research, check your rights",
        files=(
            _ptb(
                "train",
                "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf",
                5_101_618,
            ),
            _ptb(
                "valid",
                "c9fe6985fe0d4ccb578183407d7668fc6066c20700cb4cf87d8ff1cc34df1bf2",
                399_782,
            ),
            _ptb(
                "test",
                "dd65dff31e70846b2a6030a87482edcd5d199130cdcfa1f3dccbb033728deee0",
                449_945,
            ),
        ),
        tokens={"train": 929_589, "valid": 73_760, "test": 82_430},
        types=10_000,
    ),
    "wikitext-2": CatalogueEntry(
        title="WikiText-2, words, of Merity et al. 2016",
        licence=_WIKITEXT_LICENCE,
        files=(
            _wikitext(
                "wikitext-2",
                "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
                4_475_746,
            ),
        ),
        tokens={"train": 2_088_628, "valid": 217_646, "test": 245_569},
        types=33_278,
    ),
    "wikitext-103": CatalogueEntry(
        title="WikiText-103, words, of Merity et al. 2016",
        licence=_WIKITEXT_LICENCE,
        files=(
            _wikitext(
                "wikitext-103",
                "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
                190_229_076,
            ),
        ),
        tokens={"train": 103_227_021, "valid": 217_646, "test": 245_569},
        types=267_735,
    ),
}
