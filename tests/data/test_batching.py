"""Windows: what a model sees in training and in evaluation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data import DataError, TrainBatches, stream_windows


def test_windows_of_two_streams_by_hand():
    batches = TrainBatches(np.arange(15, dtype=np.uint16), batch_size=2, steps=3)
    assert len(batches) == 2  # streams 0 … 6 and 7 … 13; 14 is dropped
    inputs, targets = batches[0]
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [[0, 7], [1, 8], [2, 9]]
    assert targets.tolist() == [[1, 8], [2, 9], [3, 10]]
    assert batches[1][0].tolist() == [[3, 10], [4, 11], [5, 12]]


@given(length=st.integers(2, 200), batch_size=st.integers(1, 5), steps=st.integers(1, 7))
def test_each_window_goes_on_where_the_last_ended(length, batch_size, steps):
    ids = np.arange(length)
    stream = length // batch_size
    if stream < steps + 1:
        with pytest.raises(DataError, match="too short"):
            TrainBatches(ids, batch_size, steps)
        return
    batches = TrainBatches(ids, batch_size, steps)
    assert len(batches) == (stream - 1) // steps
    inputs = torch.cat([window for window, _ in batches])
    targets = torch.cat([window for _, window in batches])
    rows = len(batches) * steps
    expected = torch.arange(batch_size * stream).view(batch_size, stream).T
    assert torch.equal(inputs, expected[:rows])
    assert torch.equal(targets, expected[1 : rows + 1])


def test_indices_are_those_of_a_sequence():
    batches = TrainBatches(np.arange(10), 1, 3)
    assert torch.equal(batches[-1][0], batches[2][0])
    for index in (3, -4):
        with pytest.raises(IndexError):
            batches[index]


def test_a_text_too_short_is_refused_with_the_numbers():
    with pytest.raises(DataError, match=r"399 tokens.*batch_size 20 and steps 20.*at least 420"):
        TrainBatches(np.zeros(399, dtype=np.uint16), 20, 20)
    assert len(TrainBatches(np.zeros(420, dtype=np.uint16), 20, 20)) == 1


@pytest.mark.parametrize(("batch_size", "steps"), [(0, 1), (1, 0), (-1, 1), (1.0, 1), (True, 1)])
def test_sizes_must_be_positive_integers(batch_size, steps):
    with pytest.raises(DataError, match=r"(batch_size|steps) must be"):
        TrainBatches(np.arange(10), batch_size, steps)


def test_ids_must_be_one_row_of_integers():
    for ids in (np.zeros((4, 4), dtype=int), np.zeros(16)):
        with pytest.raises(DataError, match="1-D array of integers"):
            TrainBatches(ids, 1, 1)


def test_a_memory_map_is_read_window_by_window(tmp_path):
    np.arange(100, dtype="<u2").tofile(tmp_path / "ids")
    ids = np.memmap(tmp_path / "ids", dtype="<u2", mode="r")
    batches = TrainBatches(ids, 4, 5)
    assert isinstance(batches._streams, np.memmap)
    inputs, _ = batches[0]
    inputs[0, 0] = 99  # a copy, ours to write to
    assert batches[0][0][0, 0] == 0


@given(length=st.integers(1, 60), steps=st.integers(1, 70))
def test_evaluation_has_every_id_as_a_target_once(length, steps):
    ids = np.arange(100, 100 + length, dtype=np.uint16)
    windows = list(stream_windows(ids, steps, first=7))
    inputs = torch.cat([window for window, _ in windows])
    targets = torch.cat([window for _, window in windows])
    assert inputs.dtype == targets.dtype == torch.int64
    assert targets[:, 0].tolist() == ids.tolist()
    assert inputs[:, 0].tolist() == [7, *ids[:-1].tolist()]
    assert all(len(window) == steps for window, _ in windows[:-1])


def test_evaluation_refuses_its_arguments_before_the_first_window():
    with pytest.raises(DataError, match="no tokens"):
        stream_windows(np.zeros(0, dtype=int), 5, 0)
    with pytest.raises(DataError, match="steps must be at least 1"):
        stream_windows(np.arange(3), 0, 0)
