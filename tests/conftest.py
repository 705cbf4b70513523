# SPDX-License-Identifier: BSD-2-Clause
"""Fixtures of all suites: the build under test, a work directory per test, mounts that never outlive it.

Each test owns $workdir/{store,mnt,logs}. It passes only if its daemons stop with status 0 and their logs hold no
unexpected warning and no sanitizer report; a failed one keeps its work directory, with stacks and repro.sh.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import threading

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.dirname(TESTS)
sys.path.insert(0, TESTS)

from harness import mount as harness_mount  # noqa: E402
from harness import wait  # noqa: E402

REQUIRE_FUSE = os.environ.get("LARDER_REQUIRE_FUSE") == "1"
DEADLINE_SECONDS = 120


def pytest_addoption(parser):
    group = parser.getgroup("larder")
    group.addoption("--build-dir", default=os.path.join(SOURCE, "build"), help="meson build directory to test")
    group.addoption("--plain-dir", action="store_true",
                    help="run the POSIX tests on a plain local directory: tries the tests, not larder")
    group.addoption("--mount-options", default="", help="options added to every mount, as -o takes them")
    group.addoption("--seed", type=int, default=None, help="seed of random tests; printed and kept on failure")
    group.addoption("--model-steps", type=int, default=1500, help="operations per sequence of fs/test_model.py")
    group.addoption("--kill-rounds", type=int, default=8, help="rounds of SIGKILL per mode of crash/test_kill9.py")
    group.addoption("--keep", action="store_true", help="keep the work directories of passed tests as well")


class TooLong(Exception):
    """The test ran past its deadline; its mounts were aborted."""


def is_sanitized(binary):
    try:
        with open(binary, "rb") as f:
            data = f.read()
    except FileNotFoundError:
        return False
    return any(mark in data for mark in (b"__asan_init", b"__tsan_init", b"__ubsan_handle"))


def skip_or_fail(reason):
    """A missing facility: a skip that names it, or a failure where everything must be there."""
    if REQUIRE_FUSE:
        pytest.fail(f"{reason} (LARDER_REQUIRE_FUSE=1)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def source_dir():
    return SOURCE


@pytest.fixture(scope="session")
def build_dir(request):
    path = os.path.abspath(request.config.getoption("--build-dir"))
    if is_sanitized(os.path.join(path, "fs", "mount.larder")):
        wait.SLOWNESS = 4.0
    return path


@pytest.fixture(scope="session")
def base_dir():
    """Where the work directories of this run are; what is mounted below it at the end is taken away."""
    base = tempfile.mkdtemp(prefix="larder-tests-")
    os.chmod(base, 0o755)
    yield base
    left = harness_mount.sweep(base)
    if not os.listdir(base):
        os.rmdir(base)
    assert not left, f"left behind by the tests: {left}"


@pytest.hookimpl(hookwrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.call_report = report


def pytest_collection_modifyitems(config, items):
    if config.getoption("--plain-dir"):
        skip = pytest.mark.skip(reason="--plain-dir: this is about larder itself")
        for item in items:
            if item.get_closest_marker("daemon"):
                item.add_marker(skip)


@pytest.fixture
def workdir(request, base_dir):
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[:60]
    path = tempfile.mkdtemp(prefix=name + "-", dir=base_dir)
    yield path
    report = getattr(request.node, "call_report", None)
    failed = report is None or report.failed or getattr(request.node, "site_problems", None)
    if failed:
        sys.stderr.write(f"\nkept: {path}\n")
    elif not request.config.getoption("--keep"):
        shutil.rmtree(path)


@pytest.fixture
def site(request, workdir, build_dir):
    """The test's own Site. Teardown unmounts, reads the logs, and fails the test for what it finds there."""
    plain = request.config.getoption("--plain-dir")
    if os.geteuid() != 0:
        skip_or_fail("the tests mount and change owners: they need root")
    if not plain and not os.path.exists("/dev/fuse"):
        skip_or_fail("no /dev/fuse: `modprobe fuse`")
    extra = dict(word.partition("=")[::2] if "=" in word else (word, True)
                 for word in request.config.getoption("--mount-options").split(",") if word)
    made = harness_mount.Site(workdir, build_dir, plain, extra)
    if not plain and not os.path.exists(made.daemon):
        pytest.fail(f"{made.daemon} is not built", pytrace=False)
    with Watchdog(request.node, made):
        yield made
        report = getattr(request.node, "call_report", None)
        problems = made.finish(report is None or report.failed)
    if made.aborted:
        problems.insert(0, "aborted at its deadline")
    if problems or report is None or report.failed:
        request.node.site_problems = problems
        made.keep_evidence(request.node.nodeid)
    if problems and report is not None and report.passed:
        pytest.fail("after the test: " + "\n".join(problems), pytrace=False)


class Watchdog:
    """Ends a test that runs past its deadline: stacks, abort of its mounts, an exception in the main thread."""

    def __init__(self, node, made):
        marker = node.get_closest_marker("deadline")
        self.seconds = (marker.args[0] if marker else DEADLINE_SECONDS) * wait.SLOWNESS
        self.site = made
        self.timer = threading.Timer(self.seconds, self._fire)
        self.timer.daemon = True

    def __enter__(self):
        self.before = signal.signal(signal.SIGALRM, self._raise)
        self.timer.start()
        return self

    def __exit__(self, *_):
        self.timer.cancel()
        signal.signal(signal.SIGALRM, self.before)

    def _fire(self):
        self.site.abort_all()
        signal.pthread_kill(threading.main_thread().ident, signal.SIGALRM)

    def _raise(self, *_):
        raise TooLong(f"not done after {self.seconds:.0f} s; stacks are in {self.site.logs}")


@pytest.fixture
def mount(site):
    """mount(quota="8M", ...) gives a started Mount; start=False leaves that to the test."""
    return site.mount


@pytest.fixture
def fs(mount):
    """The path of a fresh mount that all users may enter: all that a POSIX test needs."""
    return mount(quota="512M", allow_other=True).mnt


@pytest.fixture
def need_program():
    """need_program("git") -> its path; a skip (or failure) names the program that is missing."""
    def need(name):
        return shutil.which(name) or skip_or_fail(f"no {name} on this machine")
    return need


@pytest.fixture
def lacking():
    """lacking("no overlay"): this machine cannot run the test; a skip, or a failure where everything must be there."""
    return skip_or_fail


@pytest.fixture
def seed(request, site):
    """For random tests: --seed, or a new one; kept with the evidence of a failure."""
    chosen = request.config.getoption("--seed")
    if chosen is None:
        chosen = random.SystemRandom().randrange(1 << 32)
    site.notes.append(f"seed {chosen}")
    print(f"seed {chosen}")
    return chosen
