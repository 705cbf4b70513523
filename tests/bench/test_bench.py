# SPDX-License-Identifier: BSD-2-Clause
"""Goal: the benchmark measures every workload it names, says what it could not, and leaves the machine as it was.
Method: it is run with tiny counts, whole and interrupted; its JSON, the mounts, the work directory and the kernel's switch
are looked at. No time is judged: the report's arithmetic is tried on made-up results."""

import json
import os
import signal
import subprocess
import sys
import xml.dom.minidom

import pytest

from harness.mount import mountinfo
from harness.wait import eventually

HERE = os.path.dirname(os.path.abspath(__file__))
RUN = os.path.join(HERE, "run")
sys.path.insert(0, HERE)

import families  # noqa: E402
import machine  # noqa: E402
import marks  # noqa: E402
import report  # noqa: E402

pytestmark = pytest.mark.daemon


@pytest.fixture
def unchanged(site):
    """A directory to work in; afterwards it is empty, nothing is mounted in it, and the switch is where it was."""
    place = os.path.join(site.workdir, "bench")
    os.makedirs(place)
    before = machine.Uring().before
    yield place
    assert os.listdir(place) == []
    assert [point for point, _, _ in mountinfo() if point.startswith(place)] == []
    assert machine.Uring().before == before


def bench(site, place, *words, timeout=100):
    result = site.run([RUN, "--quick", "--silent", "--build-dir", site.build_dir, "--dir", place, "--json",
                       os.path.join(site.workdir, "out.json"), *words], timeout)
    assert result.returncode == 0, result.stdout + result.stderr
    with open(os.path.join(site.workdir, "out.json")) as f:
        return json.load(f), result.stdout


def has_system(document, name):
    return not any(note.startswith("not run: " + document["systems"][name]) for note in document["notes"])


@pytest.mark.parametrize("name", ["small", "small_text", "clients_8", "big", "listing"])
def test_each_step_gives_a_result_for_each_system(site, unchanged, name):
    document, _ = bench(site, unchanged, "--workloads", name, "--systems", "bare,floor,floor-dev,larder,larder-dev",
                        "--rounds", "2")
    family = next(family for family in families.STEPPED if family.name == name)
    found = {(r["step"], r["system"], r["round"]) for r in document["results"]}
    for system in ("bare", "floor", "floor-dev", "larder", "larder-dev"):
        if not has_system(document, system):
            continue
        for step in family.steps:
            if step.measured and not (step.chill and system.startswith("floor")):
                assert {(f"{name}/{step.name}", system, 0), (f"{name}/{step.name}", system, 1)} <= found
    for result in document["results"]:
        assert result["operations"] > 0 and result["wall_s"] > 0
        assert result["p50_ns"] <= result["p99_ns"] <= result["max_ns"]


def test_sampled_hits_are_measured_in_every_step(site, unchanged):
    document, _ = bench(site, unchanged, "--workloads", "small,big", "--systems", "bare,larder-sampled")
    if not has_system(document, "larder-sampled"):
        pytest.skip("no io_uring")
    found = {name: {r["step"] for r in document["results"] if r["system"] == name} for name in ("bare", "larder-sampled")}
    assert found["larder-sampled"] == found["bare"]


@pytest.mark.parametrize("name, steps", [
    ("quota", {"quota/below", "quota/at"}), ("restart", {"memory/filled", "memory/restarted", "restart/kill", "restart/stop"}),
    ("page_cache", {"page_cache"}), ("caches", {"caches/put", "caches/get"}), ("pip", {"pip/install"})])
def test_each_other_workload_gives_its_results(site, unchanged, name, steps):
    document, _ = bench(site, unchanged, "--workloads", name, "--systems", "bare,larder,larder-dev")
    if any(note.startswith(f"not run: {name}") for note in document["notes"]):
        pytest.skip(next(note for note in document["notes"] if note.startswith(f"not run: {name}")))
    assert steps <= {r["step"] for r in document["results"]}
    if name == "quota":
        at = next(r for r in document["results"] if r["step"] == "quota/at")
        assert at["evicted"] > 0 and at["du_samples"] > 0 and at["overshoot_bytes"] == 0


def test_requests_are_counted(site, unchanged):
    """A get again is an OPEN and what follows it; a repeated miss is nobody's business but the kernel's."""
    document, text = bench(site, unchanged, "--workloads", "small", "--systems", "bare,floor-dev", "--requests")
    if not has_system(document, "floor-dev") or any("requests are not counted" in note for note in document["notes"]):
        pytest.skip("; ".join(document["notes"]))
    asked = {r["step"]: r["requests"] for r in document["results"] if r["system"] == "floor-dev"}
    assert asked["small/get_again"] == {"OPEN": 200, "RELEASE": 200}
    assert asked["small/miss_again"] == {}
    assert "requests per operation" in text


def test_what_cannot_be_run_is_said(site, unchanged):
    document, text = bench(site, unchanged, "--workloads", "small", "--systems", "bare,larder-dev,mergerfs",
                           "--svg", os.path.join(site.workdir, "out.svg"), "--rounds", "1")
    assert "marks" in text and "small/get_again" in text
    assert has_system(document, "mergerfs") == any(r["system"] == "mergerfs" for r in document["results"])
    with open(os.path.join(site.workdir, "out.svg")) as f:
        xml.dom.minidom.parseString(f.read())


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupted_run_takes_everything_away(site, unchanged, sig):
    process = subprocess.Popen([RUN, "--silent", "--workloads", "sustained", "--systems", "bare,larder-dev",
                                "--build-dir", site.build_dir, "--dir", unchanged], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    site.processes.append(process)
    eventually(lambda: sum(point.startswith(unchanged) for point, _, _ in mountinfo()) == 1, 60, "larder mounted")
    process.send_signal(sig)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, text
    assert f"ended by {sig.name}" in text


def test_a_wrong_answer_is_no_result(site):
    """The client looks at what it reads: bytes of another seed are an error, not a fast get."""
    client = os.path.join(site.build_dir, "tests", "bench", "bench_client")
    where = os.path.join(site.workdir, "keys")
    words = ["--count", "20", "--bytes", "100"]
    assert json.loads(site.run_ok([client, "put", where, *words]).stdout)["operations"] == 20
    site.run_ok([client, "get", where, *words])
    for directory, _, names in os.walk(where):
        for name in names:
            with open(os.path.join(directory, name), "r+b") as f:
                f.write(b"other")
    result = site.run([client, "get", where, *words])
    assert result.returncode == 1 and "client: get: read" in result.stderr


def result_of(step, system, turn, ns, **more):
    return {"step": step, "system": system, "round": turn, "workload": "put", "clients": 1, "operations": 10, "wall_s": 1.0,
            "mean_ns": ns, "p50_ns": ns, **more}


def test_ratios_are_taken_within_a_round():
    rows = [result_of("small/put", "bare", 0, 10), result_of("small/put", "larder", 0, 20),
            result_of("small/put", "bare", 1, 1000), result_of("small/put", "larder", 1, 1900),
            result_of("small/put", "bare", 2, 10), result_of("small/put", "larder", 2, 21)]
    table = report.Table({"results": rows})
    assert table.ratio("small/put", "larder", "bare") == 2.0
    verdicts = {(v.mark, v.what): v for v in marks.judge(table)}
    assert verdicts["put, burst", "small/put: larder / bare"].met is True
    assert verdicts["get again", "small/get_again: larder / floor"].met is None


def test_many_clients_are_judged_by_throughput():
    rows = [result_of("clients_2/put", "larder", 0, 0, clients=2, wall_s=1.0, fastest_client_ops=5, slowest_client_ops=4),
            result_of("clients_64/put", "larder", 0, 0, clients=64, wall_s=2.0, fastest_client_ops=9, slowest_client_ops=1)]
    verdicts = {v.what: v.met for v in marks.judge(report.Table({"results": rows}))}
    assert verdicts["put: throughput of 64 / of 2 clients"] is False
    assert verdicts["put: slowest / fastest client"] is False
