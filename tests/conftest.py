"""What holds for every test: seeded, offline, away from the user's files, in any of two processes.

The suite runs in two processes (pytest-xdist, see pyproject.toml; `-n 0` is one), which share out
the tests as they go: any test may run in either, after any other. What is expensive and the same
for both is made by the first that wants it, in `shared_folder`.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.server
import ipaddress
import multiprocessing
import multiprocessing.forkserver
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from ctypes import POINTER, c_int, c_int64, c_uint, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import unsynced  # noqa: F401

from symrnn import native
from symrnn.native import building
from symrnn.native.interface import Gpu, Layer

# The same examples in every run; a machine's speed decides nothing.
hypothesis.settings.register_profile(
    "symrnn",
    derandomize=True,
    deadline=None,
    max_examples=25,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("symrnn")


def pytest_configure() -> None:
    # The order of sums, and so their last bits, depends on the number of threads; and for the small
    # tensors of the tests more than one thread only costs time. The variable is for the programs
    # that tests start; a test that is about threads asks for them.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    # torch.manual_seed notes for each kind of device where it was called: milliseconds a test.
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(0)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """--threads of a program holds for the process; the tests after this one want what they had."""
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _noticed() -> None:
    """Where the native kernels are absent the one notice of it is no test's, but for its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        native.notice()


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the suite, one for all its processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # where each process has its own
    folder /= "shared"
    folder.mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Of all processes that ask for `path`, one at a time; a process that dies lets go of it."""
    with path.open("w") as file:
        with contextlib.suppress(ImportError):  # where there are no such locks, whoever is late
            import fcntl  # replaces what is there by the same

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session", autouse=True)
def _private_data_folder(shared_folder: Path) -> Iterator[Path]:
    """Corpora of the tests go to a folder of their own, never to the user's cache."""
    folder = shared_folder / "symrnn-data"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYMRNN_DATA", str(folder))
        yield folder


@pytest.fixture(scope="session")
def forks() -> multiprocessing.context.ForkServerContext:
    """Starts processes from one that has loaded torch, the programs and what tests run in them."""
    context = multiprocessing.get_context("forkserver")
    programs = ["lm.train", "symrnn.vision.train"]
    # What takes seconds to load and is loaded late: by the first optimizer, the first picture.
    later = ["torch._dynamo", "torch.utils.tensorboard", "matplotlib.pyplot"]
    children = ["unsynced", "killed_programs", "vision_children", "worlds"]
    context.set_forkserver_preload([*programs, *later, *children])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server's own is not ours
        multiprocessing.forkserver.ensure_running()
    return context


class OutsideWorldError(RuntimeError):
    """A test tried to reach another machine.

    No OSError: code that copes with a lost network must not hide it.
    """


def _refuse_outside(address: Any) -> None:
    if not isinstance(address, tuple):  # a path (AF_UNIX) stays on this machine
        return
    host = str(address[0]).partition("%")[0]
    if host in ("", "localhost"):
        return
    try:
        inside = ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        inside = False
    if not inside:
        raise OutsideWorldError(f"tests may only reach this machine, not {address!r}")


@pytest.fixture(scope="session", autouse=True)
def _offline() -> Iterator[None]:
    """Connections end at the loopback; child processes meet a proxy there that does not exist."""

    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_outside(address)
        connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_outside(address)
        return connect_ex(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
        for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy"):
            for variable in (name, name.upper()):
                patch.setenv(variable, "http://127.0.0.1:9")
        for variable in ("no_proxy", "NO_PROXY"):
            patch.setenv(variable, "localhost,127.0.0.1,::1")
        yield


class Web(http.server.ThreadingHTTPServer):
    """A web server on this machine.

    answers: for a path the bytes to serve, or what answers in its own way.
    asked: the paths that were asked for.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _WebHandler)
        self.answers: dict[str, bytes | Callable[[http.server.BaseHTTPRequestHandler], None]] = {}
        self.asked: list[str] = []

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class _WebHandler(http.server.BaseHTTPRequestHandler):
    server: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.removeprefix("/")
        self.server.asked.append(path)
        answer = self.server.answers.get(path)
        if answer is None:
            self.send_error(404)
        elif isinstance(answer, bytes):
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
        else:
            answer(self)


@pytest.fixture
def web() -> Iterator[Web]:
    server = Web()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`without("tqdm", …)`: as if those packages were not installed."""

    def hide(*packages: str) -> None:
        for name in [*sys.modules]:
            if name.partition(".")[0] in packages or name.startswith("torch.utils.tensorboard"):
                monkeypatch.delitem(sys.modules, name)
        for name in packages:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return Path(os.path.realpath(__file__)).parents[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own of 1 MiB, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    try:
        mounted = os.name == "posix" and subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs of 1 MiB")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="session")
def folder_for(
    shared_folder: Path, pytestconfig: pytest.Config
) -> Callable[..., contextlib.AbstractContextManager[Path]]:
    """``with folder_for(name, files, command) as folder:`` where to put what is compiled so.

    It may lie there already: the folder is one for all processes of the suite, of which one at a
    time is inside; and, where pytest has a cache, for all its runs, until the compiler, the command
    or a file changes.
    """
    parent = shared_folder
    with contextlib.suppress(AttributeError, OSError):  # -p no:cacheprovider; a tree that is read
        parent = pytestconfig.cache.mkdir("compiled")  # type: ignore[union-attr]

    @contextlib.contextmanager
    def folder(name: str, files: Iterable[Path], command: Sequence[str]) -> Iterator[Path]:
        version = building.run([*building.compiler(), "--version"], "--version")
        made = parent / f"{name}-{building.fingerprint_of(files, [*command, version])}"
        for other in parent.glob(f"{name}-*"):
            if other != made:
                shutil.rmtree(other, ignore_errors=True)
        made.mkdir(exist_ok=True)
        with locked(made / "lock"):
            yield made

    return folder


@pytest.fixture(scope="session")
def compile_emulator(
    folder_for: Callable[..., contextlib.AbstractContextManager[Path]],
) -> Callable[..., ctypes.CDLL]:
    """Compiles tests/native/emulate.cpp: (folder of the kernels' sources, a name, definitions)."""
    if not native.available():
        pytest.skip(native.why_not())
    try:
        compiler = building.compiler()
    except building.NotBuiltError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    here = Path(__file__).parent / "native"

    def compiled(cuda: Path, name: str, *defined: str) -> ctypes.CDLL:
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-Wno-unknown-pragmas"]
        command = [*compiler, *flags, *(f"-D{one}" for one in defined)]
        headers = [path for one in (cuda.parent, cuda, here) for path in sorted(one.glob("*.h"))]
        source = here / "emulate.cpp"
        with folder_for(name, [*headers, source], command) as folder:
            path = folder / "emulate.so"
            if not path.exists():
                made = path.with_suffix(f".{os.getpid()}")
                included = [f"-I{cuda}", f"-I{here}"]
                subprocess.run([*command, *included, str(source), "-o", str(made)], check=True)
                made.rename(path)
        library = ctypes.CDLL(str(path))
        layer = [POINTER(Layer), c_int, c_int, c_int64, c_int64, c_int]
        gpu = [c_void_p, c_int64, POINTER(Gpu), c_uint]
        library.emulate_forward.argtypes = [*layer, *[c_void_p] * 7, *gpu]
        library.emulate_backward.argtypes = [*layer, *[c_void_p] * 12, *gpu]
        two = [POINTER(Layer), c_int, c_int64, c_int64]
        library.emulate_forward_wavefront.argtypes = [*two, *[c_void_p] * 9, *gpu]
        library.emulate_backward_wavefront.argtypes = [*two, *[c_void_p] * 14, *gpu]
        return library

    return compiled


@pytest.fixture(scope="session")
def emulator(compile_emulator: Callable[..., ctypes.CDLL]) -> ctypes.CDLL:
    """The kernels for GPUs compiled for this machine's CPU."""
    return compile_emulator(building.FOLDER / "cuda", "emulator")


@pytest.fixture(scope="session")
def operators(shared_folder: Path) -> Iterator[SimpleNamespace]:
    """``torch.ops.symrnn`` with the operators of packed layers, and the library's path.

    They are compiled by the first process of the suite that wants them.
    """
    from symrnn.native.torch import building as operators
    from symrnn.native.torch import load

    if not native.available():
        pytest.skip(native.why_not())
    try:
        building.compiler()
    except building.NotBuiltError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYMRNN_CACHE", str(shared_folder / "kernels"))
        load()
        yield SimpleNamespace(ops=torch.ops.symrnn, path=operators.build())
