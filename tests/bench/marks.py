# SPDX-License-Identifier: BSD-2-Clause
"""The marks to reach, as ratios within one run. Each is a list of verdicts (what, measured, bound, met); met is None where
the run did not measure it."""

from dataclasses import dataclass

#: Of the marks without io_uring: the same work as with it.
SMALL_STEPS = ["sustained/put", "small/put", "small/get_again", "small/get_first", "small/unlink", "small/miss_first",
               "small/stat", "small/miss_again"]
STARVED = 0.2  # of the fastest client's rate


@dataclass
class Verdict:
    mark: str
    what: str
    measured: str
    bound: str
    met: object


def verdict(mark, what, value, bound, text, at_least=False):
    sign = "≥" if at_least else "≤"
    if value is None:
        return Verdict(mark, what, "not measured", f"{sign} {text.format(bound)}", None)
    met = value >= bound if at_least else value <= bound
    return Verdict(mark, what, text.format(value), f"{sign} {text.format(bound)}", met)


def cost(table, mark, step, system, base, bound):
    what = f"{step}: {system} / {base}"
    return verdict(mark, what, table.ratio(step, system, base), bound, "{:.2f}")


def speed(table, mark, step, system, base, bound):
    ratio = table.ratio(step, system, base)
    return verdict(mark, f"{step}: speed of {system} / {base}", None if ratio is None else 1 / ratio, bound, "{:.2f}", True)


def plain(table, mark, step, system, key, bound, text, at_least=False):
    return verdict(mark, f"{step}: {system} {key}", table.value(step, system, key), bound, text, at_least)


def small(t):
    yield cost(t, "sustained put", "sustained/put", "larder", "bare", 1.0)
    yield cost(t, "sustained put", "sustained/put", "larder", "floor", 1.2)
    yield cost(t, "put, burst", "small/put", "larder", "bare", 2.0)
    yield cost(t, "get again", "small/get_again", "larder", "floor", 1.15)
    yield cost(t, "get again", "small/get_again", "larder-sampled", "bare", 1.2)
    for step in ("small/get_first", "small/unlink", "small/miss_first"):
        yield cost(t, "first get, unlink, first miss", step, "larder", "floor", 1.25)
    for step in ("small/stat", "small/miss_again"):
        yield cost(t, "cached stat, repeated miss", step, "larder", "bare", 1.1)
    for step in SMALL_STEPS:
        yield cost(t, "without io_uring", step, "larder-dev", "floor-dev", 1.25)
        yield cost(t, "without io_uring", step, "larder-dev", "passthrough_hp", 1.0)
        yield cost(t, "without io_uring", step, "larder-dev", "mergerfs", 1.0)


def big(t):
    for step in ("big/read_warm", "big/read_cold", "big/random_mmap"):
        yield speed(t, "1 GiB read, mmap", step, "larder", "bare", 0.95)
    yield speed(t, "1 GiB write", "big/write", "larder", "bare", 0.9)
    yield speed(t, "1 GiB rewrite", "big/rewrite", "larder", "bare", 0.8)
    for step, bound in (("big_text/read_warm", 2.0), ("big_text/write", 1.0)):
        yield verdict("1 GiB compressible", f"{step}: GB per core-second, client and daemon", t.per_core(step, "larder"),
                      bound, "{:.2f}", True)
    raw, stored = t.value("big_text/write", "larder", "bytes"), t.value("big_text/write", "larder", "disk_bytes")
    yield verdict("1 GiB compressible", "big_text/write: disk / raw", stored / raw if raw and stored is not None else None,
                  0.99, "{:.2f}")
    yield verdict("page cache", "page_cache: bytes cached / bytes of a big value", t.value("page_cache", "larder", "ratio"), 1.1,
                  "{:.2f}")


def clients(t):
    for step in ("put", "get_first", "get_again", "put_over", "unlink"):
        two, many = t.median(f"clients_2/{step}", "larder"), t.median(f"clients_64/{step}", "larder")
        yield verdict("64 clients", f"{step}: throughput of 64 / of 2 clients", two / many if two and many else None, 1.0,
                      "{:.2f}", True)
        yield verdict("64 clients", f"{step}: slowest / fastest client", t.fairness(f"clients_64/{step}", "larder"), STARVED,
                      "{:.2f}", True)


def quota(t):
    for key, bound in (("p50_ns", 1.2), ("p99_ns", 3.0)):
        below, at = t.value("quota/below", "larder", key), t.value("quota/at", "larder", key)
        yield verdict("at quota", f"{key[:3]} at / below quota", at / below if below and at else None, bound, "{:.2f}")
    longest = t.value("quota/at", "larder", "max_ns")
    yield verdict("at quota", "longest put, ms", None if longest is None else longest / 1e6, 50.0, "{:.1f}")
    yield plain(t, "at quota", "quota/at", "larder", "overshoot_bytes", 0, "{:.0f}")


def restart(t):
    for how in ("kill", "stop"):
        yield plain(t, "restart", f"restart/{how}", "larder", "keys_per_s", 1.5e6, "{:.3g}", True)
        yield plain(t, "restart", f"restart/{how}", "larder", "first_hit_ms", 50, "{:.1f}")
    for step in ("memory/filled", "memory/restarted"):
        yield plain(t, "memory", step, "larder", "bytes_per_key", 100, "{:.0f}")


def programs(t):
    yield cost(t, "ccache", "ccache/hits", "larder", "bare", 1.03)
    yield cost(t, "ccache", "ccache/cold", "larder", "bare", 1.05)
    for verb in ("put", "get"):
        yield cost(t, "other caches", f"caches/{verb}", "larder", "diskcache", 1.0)


def judge(table):
    return [v for part in (small, big, clients, quota, restart, programs) for v in part(table)]
