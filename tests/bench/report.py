# SPDX-License-Identifier: BSD-2-Clause
"""What a run found, as tables and a chart. A document is what tests/bench/run writes as JSON; nothing here measures."""

import html
import math
from statistics import median

import marks
from harness.du import disk_bytes  # noqa: F401  (du of a store, for those who measure)


class Table:
    """Results by step and system. The cost of an operation is its mean time with one client, else wall time / operations.
    By "p50" it is the median with one client: what a machine busy with other things lets one see."""

    def __init__(self, document):
        self.by_median = document.get("by") == "p50"
        self.rows = {}
        for result in document["results"]:
            self.rows.setdefault((result["step"], result["system"]), {})[result["round"]] = result
        self.steps = list(dict.fromkeys(step for step, _ in self.rows))

    def cost(self, result):
        if "mean_ns" in result and result.get("clients", 1) == 1:
            calls = result["operations"] > 1 and result["workload"] not in ("readdir", "find")
            return result["p50_ns"] if self.by_median and calls else result["mean_ns"]
        return result["wall_s"] * 1e9 / max(1, result.get("operations", 1))

    def costs(self, step, system):
        return [self.cost(result) for result in self.rows.get((step, system), {}).values() if "wall_s" in result]

    def median(self, step, system):
        costs = self.costs(step, system)
        return median(costs) if costs else None

    def spread(self, step, system):
        """(max - min) / median."""
        costs = self.costs(step, system)
        return (max(costs) - min(costs)) / median(costs) if len(costs) > 1 else None

    def ratio(self, step, system, base):
        """The median of the ratios within each round."""
        ours, theirs = self.rows.get((step, system), {}), self.rows.get((step, base), {})
        ratios = [self.cost(ours[turn]) / self.cost(theirs[turn]) for turn in ours
                  if turn in theirs and "wall_s" in ours[turn]]
        return median(ratios) if ratios else None

    def value(self, step, system, key):
        values = [r[key] for r in self.rows.get((step, system), {}).values() if r.get(key) is not None]
        return median(values) if values else None

    def fairness(self, step, system):
        values = [r["slowest_client_ops"] / r["fastest_client_ops"] for r in self.rows.get((step, system), {}).values()]
        return median(values) if values else None

    def cpu(self, step, system):
        """CPU time of an operation in ns: (daemon's, client's)."""
        rows = [r for r in self.rows.get((step, system), {}).values() if "daemon_s" in r]
        if not rows:
            return None
        return tuple(median(f(r) * 1e9 / max(1, r["operations"]) for r in rows)
                     for f in (lambda r: r["daemon_s"], lambda r: r["user_s"] + r["system_s"]))

    def per_core(self, step, system):
        """GB for each second of CPU time, the client's included."""
        values = [r["bytes"] / 1e9 / (r["daemon_s"] + r["user_s"] + r["system_s"])
                  for r in self.rows.get((step, system), {}).values()]
        return median(values) if values else None


def time_text(ns):
    for unit, size in (("s", 1e9), ("ms", 1e6)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}"
    return f"{ns / 1e3:.3g}"


def print_rows(title, header, rows):
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{title}\n")
    for n, row in enumerate([header, *rows]):
        print("| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |")
        if n == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def columns(table, document):
    return [name for name in document["systems"] if any((step, name) in table.rows for step in table.steps)] + \
        sorted({name for _, name in table.rows} - set(document["systems"]))


def print_times(table, document):
    names = columns(table, document)
    rows = []
    for step in table.steps:
        cells = []
        for name in names:
            value, spread = table.median(step, name), table.spread(step, name)
            cells.append("" if value is None else time_text(value) + ("" if spread is None else f" ±{spread * 50:.0f} %"))
        if any(cells):
            rows.append([step, *cells])
    if rows:
        print_rows("µs per operation (median of rounds, ± half the spread)", ["", *names], rows)


def print_ratios(table, document):
    floors = {"larder": "floor", "larder-dev": "floor-dev", "larder-sampled": "floor-no-open"}
    names = [name for name in columns(table, document) if name in floors]
    rows = []
    for step in table.steps:
        cells = [table.ratio(step, name, base) for name in names for base in ("bare", floors[name])]
        if any(cell is not None for cell in cells):
            rows.append([step, *("" if cell is None else f"{cell:.2f}" for cell in cells)])
    if rows:
        print_rows("times the cost of the bare directory, and of the floor",
                   ["", *(f"{name} / {base}" for name in names for base in ("bare", floors[name]))], rows)


def print_tails(table, document):
    names = [name for name in columns(table, document) if name in ("bare", "floor", "larder", "larder-dev")]
    rows = []
    for step in table.steps:
        cells = [[table.value(step, name, key) for key in ("p50_ns", "p99_ns", "max_ns")] for name in names]
        if any(all(value is not None for value in cell) for cell in cells):
            rows.append([step, *(" / ".join(map(time_text, cell)) if None not in cell else "" for cell in cells)])
    if rows:
        print_rows("µs, p50 / p99 / longest", ["", *names], rows)


def print_cpu(table, document):
    names = columns(table, document)
    rows = []
    for step in table.steps:
        cells = [table.cpu(step, name) for name in names]
        if any(cells):
            rows.append([step, *("" if not cell else f"{time_text(cell[0])} + {time_text(cell[1])}" for cell in cells)])
    if rows:
        print_rows("CPU time per operation, µs: daemon + client", ["", *names], rows)


def print_requests(table, document):
    names = columns(table, document)
    rows = []
    for step in table.steps:
        for name in names:
            for result in list(table.rows.get((step, name), {}).values())[:1]:
                asked = sorted(result.get("requests", {}).items(), key=lambda item: -item[1])
                if "requests" in result:
                    rows.append([step, name, f"{sum(count for _, count in asked) / result['operations']:.2f}",
                                 " ".join(f"{what} {count / result['operations']:.2f}" for what, count in asked)])
    if rows:
        print_rows("requests per operation, of the first round (the times are those of a traced run)",
                   ["", "", "all", ""], rows)


def print_facts(table):
    """What is no time per operation."""
    known = {"step", "system", "round", "workload", "count", "value_bytes", "clients", "compressible", "operations", "bytes",
             "wall_s", "user_s", "system_s", "daemon_s", "mean_ns", "min_ns", "fastest_client_ops", "slowest_client_ops", "requests"}
    rows = []
    for (step, system), results in sorted(table.rows.items()):
        for key in dict.fromkeys(key for result in results.values() for key in result):
            if key not in known and not key.endswith("_ns"):
                rows.append([step, system, key, f"{table.value(step, system, key):.6g}"])
    if rows:
        print_rows("besides", ["", "", "", ""], rows)


def print_marks(table):
    words = {True: "met", False: "MISSED", None: ""}
    verdicts = marks.judge(table)
    rows = [[v.mark, v.what, v.measured, v.bound, words[v.met]] for v in verdicts if v.met is not None]
    if rows:
        print_rows("marks", ["mark", "", "measured", "bound", ""], rows)
    left = sorted({v.mark for v in verdicts if v.met is None})
    if left:
        print(f"\nnot (or not wholly) measured: {', '.join(left)}")


def print_report(document):
    table = Table(document)
    about = document["machine"]
    print(f"{about['cpu']}, {about['cpus']} CPUs, Linux {about['kernel']}, {about['larder']}, {about['when']}; "
          f"{'median operation of ' if table.by_median else ''}{about['rounds']} rounds, scale {about['scale']:g}, load at the start {about['load']:.1f}; {about['disk']}")
    print_times(table, document)
    print_ratios(table, document)
    print_tails(table, document)
    print_cpu(table, document)
    print_requests(table, document)
    print_facts(table)
    print_marks(table)
    if document["notes"]:
        print("\n" + "\n".join(document["notes"]))


# ---- the chart: bars on a scale of powers of ten, legible on light and dark ----

CHART_STEPS = [("sustained/put", "put, sustained"), ("small/put", "put, burst"), ("small/get_first", "get, first"),
               ("small/get_again", "get, again"), ("small/stat", "stat, cached"), ("small/miss_first", "miss, first"),
               ("small/unlink", "unlink")]
CHART_SYSTEMS = [("bare", "#8a8f98"), ("floor", "#b9a5e8"), ("larder", "#2f9e6e"), ("larder-sampled", "#7fcf9f"),
                 ("larder-dev", "#d9a528"), ("mergerfs", "#d9682e"), ("passthrough_hp", "#b5485d")]
WIDTH, LEFT, RIGHT, TOP, BAR, GAP = 860, 170, 70, 76, 13, 14


def chart(document):
    table = Table(document)
    shown = [(name, color) for name, color in CHART_SYSTEMS
             if any(table.median(step, name) is not None for step, _ in CHART_STEPS)]
    steps = [(step, label) for step, label in CHART_STEPS if any(table.median(step, name) is not None for name, _ in shown)]
    values = [table.median(step, name) for step, _ in steps for name, _ in shown]
    values = [value / 1e3 for value in values if value]
    low, high = (math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))) if values else (0, 1)
    high = max(high, low + 1)

    def x(us):
        return LEFT + (WIDTH - LEFT - RIGHT) * (math.log10(us) - low) / (high - low)
    height = TOP + len(steps) * (len(shown) * BAR + GAP) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
           "<title>larder: microseconds per operation, 4 KiB values, one client</title>",
           "<style>text{fill:#24292f}.grid{stroke:#8a8f9855}"
           "@media(prefers-color-scheme:dark){text{fill:#d7dce2}}</style>",
           f'<text x="{LEFT}" y="18" font-size="14">µs per operation, 4 KiB, one client; shorter is better, the scale is '
           "logarithmic</text>"]
    at, row = LEFT, 30
    for name, color in shown:
        label = document["systems"].get(name, name).replace(", io_uring", " (io_uring)").replace(", /dev/fuse", " (/dev/fuse)")
        width = 24 + int(5.8 * len(label))
        if at + width > WIDTH:
            at, row = LEFT, row + 15
        out.append(f'<rect x="{at}" y="{row}" width="10" height="10" fill="{color}"/>'
                   f'<text x="{at + 14}" y="{row + 9}" font-size="10">{html.escape(label)}</text>')
        at += width
    for power in range(low, high + 1):
        out.append(f'<line class="grid" x1="{x(10 ** power):.1f}" x2="{x(10 ** power):.1f}" y1="{TOP - 8}" y2="{height - 22}"/>'
                   f'<text x="{x(10 ** power):.1f}" y="{height - 8}" text-anchor="middle">{10 ** power:g}</text>')
    y = TOP
    for step, label in steps:
        out.append(f'<text x="{LEFT - 8}" y="{y + len(shown) * BAR / 2 + 4:.1f}" text-anchor="end">{html.escape(label)}</text>')
        for name, color in shown:
            value = table.median(step, name)
            if value:
                us = value / 1e3
                figure = f"{us:.3g}" if us < 100 else f"{us:.0f}"
                out.append(f'<rect x="{LEFT}" y="{y}" width="{max(1, x(us) - LEFT):.1f}" height="{BAR - 2}" fill="{color}"/>'
                           f'<text x="{max(LEFT + 1, x(us)) + 4:.1f}" y="{y + BAR - 3}" font-size="10">{figure}</text>')
            y += BAR
        y += GAP
    return "\n".join([*out, "</svg>", ""])
