"""Where downloads and builds are cached."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from symrnn.files import UserError, cache_folder


def test_the_variable_goes_before_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("SYMRNN_DATA", raising=False)
    assert cache_folder("SYMRNN_DATA") == Path("/home/somebody/.cache/symrnn")
    assert cache_folder("SYMRNN_DATA", "vision") == Path("/home/somebody/.cache/symrnn/vision")
    monkeypatch.setenv("SYMRNN_DATA", "/elsewhere")
    assert cache_folder("SYMRNN_DATA", "vision") == Path("/elsewhere")


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container runs as any user, of whom no file says a home."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("SYMRNN_DATA", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31)
    words = "there is no home folder to cache files in; another can be given in $SYMRNN_DATA"
    with pytest.raises(UserError, match=f"^{re.escape(words)}$"):
        cache_folder("SYMRNN_DATA")
    monkeypatch.setenv("SYMRNN_DATA", "/elsewhere")
    assert cache_folder("SYMRNN_DATA") == Path("/elsewhere")
