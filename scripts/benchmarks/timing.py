"""How long calls take: peers in turn, so that what slows the machine slows all of them.

torch.utils.benchmark times one statement at a time and pyperf one process; neither interleaves.
What they have is used: torch's clock, which waits for a GPU, and its statistics of a measurement.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.benchmark import Measurement, TaskSpec, timer

Call = Callable[[], Any]


class Peer(NamedTuple):
    """What is timed against others. prepare: called before each call, untimed."""

    name: str
    call: Call
    prepare: Call | None = None


def lap(peer: Peer) -> float:
    """Seconds of one call."""
    if peer.prepare is not None:
        peer.prepare()
    start = timer()
    peer.call()
    return float(timer() - start)


def interleaved(peers: Sequence[Peer], seconds: float, rounds: int = 7) -> list[Measurement]:
    """Rounds in which each peer makes one call, for so many seconds and at least so many rounds.

    The k-th times of all measurements are those of one round. Two calls of each come first.
    """
    for peer in peers:
        lap(peer)
        lap(peer)
    times: list[list[float]] = [[] for _ in peers]
    end = time.perf_counter() + seconds
    while len(times[-1]) < rounds or time.perf_counter() < end:
        for peer, own in zip(peers, times, strict=True):
            own.append(lap(peer))
    return [measurement(peer.name, own) for peer, own in zip(peers, times, strict=True)]


def in_blocks(peers: Sequence[Peer], seconds: float, rounds: int = 3) -> list[Measurement]:
    """As :func:`interleaved`, by blocks of calls that find the peer's own weights in the cache.

    Each round begins with another peer; a measurement has the times of all calls of all rounds.
    """
    expected = [lap(peer) for peer in peers]  # of which the first may have been slow
    expected = [
        min(one, lap(peer)) if one < 0.1 else one for peer, one in zip(peers, expected, strict=True)
    ]
    times: list[list[float]] = [[] for _ in peers]
    end = time.perf_counter() + seconds
    done = 0
    while done < rounds or time.perf_counter() < end:
        for index in range(len(peers)):
            index = (index + done) % len(peers)
            times[index] += block(peers[index], min(times[index], default=expected[index]))
        done += 1
    return [measurement(peer.name, own) for peer, own in zip(peers, times, strict=True)]


def block(peer: Peer, expected: float, seconds: float = 0.04) -> list[float]:
    """The times of a few calls, so many seconds of them if one takes as long as expected.

    Two calls to warm up come first; a call of 20 to 100 ms is warmed up once and timed twice, and a
    longer one is timed once.
    """
    settle()
    warm, calls = 2, max(5, math.ceil(seconds / expected))
    if expected > 0.02:
        warm, calls = (0, 1) if expected > 0.1 else (1, 2)
    for _ in range(warm):
        lap(peer)
    return [lap(peer) for _ in range(calls)]


def settle() -> None:
    """Sleep until no thread of this process spins any more."""
    for _ in range(200):
        used = time.process_time_ns()
        # The time of threads that run on other cores is counted at the kernel's ticks alone, which
        # are up to 10 ms apart.
        time.sleep(0.012)
        if time.process_time_ns() - used < 1_000_000:
            return
    sys.exit("threads of this process go on spinning: is OMP_WAIT_POLICY=active set?")


def measurement(name: str, times: list[float]) -> Measurement:
    """Seconds of single calls as torch.utils.benchmark has them."""
    return Measurement(1, times, TaskSpec(name, "pass", num_threads=torch.get_num_threads()))


def ratio(of: Measurement, to: Measurement) -> float:
    """The median over rounds of one's time by another's; both of one :func:`interleaved`."""
    return statistics.median(a / b for a, b in zip(of.times, to.times, strict=True))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third one."""
    low, middle, high = (
        statistics.quantiles(values, method="inclusive") if values[1:] else [*values] * 3
    )
    return low, middle, high
