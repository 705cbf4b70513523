# SPDX-License-Identifier: BSD-2-Clause
"""The workloads, in families: the steps of one follow each other on the same keys.

A family of steps runs interleaved: all its systems are mounted, and each step is done by one after the other, in an order
that turns with the round, so that what the machine does meanwhile falls on all of them. Where that would need too much
memory, or a step is long, each system does all steps in its turn (`alone`). Results are named FAMILY/STEP.
"""

from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass
class Step:
    """One run of the client; before it the disk is settled, and the kernel forgets or pages leave memory if so asked."""

    name: str
    workload: str
    forget: bool = False
    chill: bool = False
    measured: bool = True


@dataclass
class Family:
    name: str
    title: str
    steps: list
    value_bytes: int
    count: int
    clients: int = 1
    compressible: bool = False
    alone: bool = False
    one_value: bool = False
    slow: bool = False      # left out by default; --workloads NAME or `all` runs it

    def scaled(self, factor):
        """How many operations, when the whole benchmark is made so much smaller."""
        return max(self.clients * 8, int(self.count * factor))


KEY_STEPS = [
    Step("put", "put"),
    Step("get_new", "get"),
    Step("get_first", "get", forget=True),
    Step("get_again", "get"),
    Step("stat_first", "stat"),
    Step("stat", "stat"),
    Step("miss_first", "miss"),
    Step("miss_again", "miss"),
    Step("put_over", "put"),
    Step("rename", "rename"),
    Step("unlink", "unlink_renamed"),
]
CLIENT_STEPS = [Step("put", "put"), Step("get_first", "get", forget=True), Step("get_again", "get"),
                Step("put_over", "put"), Step("unlink", "unlink")]
VALUE_STEPS = [
    Step("write", "big_write"),
    Step("read_warm", "big_read", forget=True),
    Step("read_again", "big_read"),
    Step("random_read", "random_read"),
    Step("random_mmap", "random_mmap"),
    Step("rewrite", "big_rewrite"),
    Step("read_cold", "big_read", chill=True),
]
LIST_STEPS = [
    Step("fill", "put", measured=False),
    Step("readdir_first", "readdir", forget=True),
    Step("readdir_again", "readdir"),
    Step("find_first", "find", forget=True),
    Step("find_again", "find"),
]

STEPPED = [
    Family("small", "4 KiB, one client", KEY_STEPS, 4 * KIB, 20000),
    Family("sustained", "4 KiB, 150,000 puts in a row", [Step("put", "put")], 4 * KIB, 150000),
    Family("small_512", "512 bytes, one client", KEY_STEPS, 512, 20000),
    Family("small_64k", "64 KiB, one client", KEY_STEPS, 64 * KIB, 4000),
    Family("small_1m", "1 MiB, one client", KEY_STEPS, MIB, 400),
    Family("small_text", "4 KiB, compressible", KEY_STEPS, 4 * KIB, 20000, compressible=True),
    Family("clients_2", "4 KiB, 2 clients", CLIENT_STEPS, 4 * KIB, 20000, clients=2),
    Family("clients_8", "4 KiB, 8 clients", CLIENT_STEPS, 4 * KIB, 20000, clients=8),
    Family("clients_64", "4 KiB, 64 clients", CLIENT_STEPS, 4 * KIB, 40000, clients=64),
    Family("big", "1 GiB, incompressible", VALUE_STEPS, GIB, 20000, alone=True, one_value=True),
    Family("big_text", "1 GiB, compressible", VALUE_STEPS, GIB, 20000, alone=True, one_value=True, compressible=True),
    Family("listing", "100,000 keys listed", LIST_STEPS, 512, 100000),
]
