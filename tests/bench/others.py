# SPDX-License-Identifier: BSD-2-Clause
"""The workloads that are no steps of the client on any directory: what only larder has (a quota, a restart), what is no
directory (diskcache, redis, memcached), and programs as users run them. Results of one name are as comparable as those of
families.py: the same work, in turn."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

import machine
import systems
from harness.du import disk_bytes
from harness.wait import eventually

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PROGRAM_SECONDS = 1800


class Other:
    """A family that runs itself: run(bench) keeps its results; setup(bench) and teardown(bench) are around all rounds."""

    name, title, slow = "", "", False
    #: Systems that take part, of those that can be run.
    names = ("larder",)
    failures = (RuntimeError, OSError, AssertionError, subprocess.SubprocessError)

    def obstacle(self, bench):
        """Why it cannot be run here, or None."""

    def setup(self, bench):
        pass

    def teardown(self, bench):
        pass

    def turn(self, bench, system, number):
        """One round on one system, which is not started."""
        raise NotImplementedError

    def run(self, bench):
        chosen = [bench.systems[name] for name in self.names if name in bench.systems]
        obstacle = self.obstacle(bench) or (None if chosen else "none of its systems is")
        if obstacle:
            bench.note(f"not run: {self.name}: {obstacle}")
            return
        try:
            self.setup(bench)
            for number in range(bench.rounds):
                first = number % len(chosen)
                for system in chosen[first:] + chosen[:first]:
                    self._attempt(bench, system, number)
                bench.say(f"{self.name}: round {number + 1}")
        except self.failures as error:
            bench.note(f"failed: {self.name}: {error}")
        finally:
            self.teardown(bench)

    def _attempt(self, bench, system, number):
        try:
            self.turn(bench, system, number)
        except self.failures as error:
            bench.note(f"failed: {self.name} on {system.label}: {error}")
        finally:
            system.stop()


def run_program(argv, **popen):
    """To its end, quietly; its wall time in seconds. RuntimeError with its last words when it fails."""
    started = time.monotonic()
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False, timeout=PROGRAM_SECONDS, errors="replace", **popen)
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit status {done.returncode}: {done.stdout[-800:]}")
    return time.monotonic() - started


# ---- what only larder has ----

class DuSampler(threading.Thread):
    """The largest du of a store while others work."""

    EVERY_SECONDS = 0.05

    def __init__(self, store):
        super().__init__(daemon=True)
        self.store, self.largest, self.samples, self.ending = store, 0, 0, threading.Event()

    def run(self):
        while not self.ending.wait(self.EVERY_SECONDS):
            self.largest = max(self.largest, disk_bytes(self.store))
            self.samples += 1

    def finish(self):
        self.ending.set()
        self.join()


class Quota(Other):
    """Puts of new keys for so many seconds: into a store with room, and into a full one that evicts all the while."""

    name, title = "quota", "4 KiB puts below quota and at quota, du sampled"
    names = ("larder", "larder-dev")
    VALUE_BYTES = 4 * KIB
    KEYS = 1 << 31  # more than there is time for

    def turn(self, bench, system, number):
        quota = 32 * MIB if bench.args.quick else 512 * MIB
        for step, bytes_max in (("below", 64 * GIB), ("at", quota)):
            system.start(quota=bytes_max)
            keys = os.path.join(system.root, "bench")
            if step == "at":
                bench.client("put", os.path.join(system.root, "before"), self.VALUE_BYTES, quota // self.VALUE_BYTES * 5 // 4)
            machine.settle(bench.workdir)
            sampler = DuSampler(system.disk)
            sampler.start()
            try:
                result = bench.measured(system, lambda: bench.client("put", keys, self.VALUE_BYTES, self.KEYS,
                                                                     seconds=bench.seconds))
            finally:
                sampler.finish()
            evicted = system.mount.stats()["evicted_quota"]
            bench.keep(f"quota/{step}", system.name, number,
                       {**result, "overshoot_bytes": max(0, sampler.largest - bytes_max), "du_samples": sampler.samples,
                        "evicted": evicted})
            system.stop()


class Restart(Other):
    """A store of many small keys: memory for each, and how soon it serves again after SIGKILL and after a clean stop."""

    name, title = "restart", "restart after SIGKILL and stop, memory per key (--keys)"
    VALUE_BYTES = 128
    NAME_BYTES = 24

    @staticmethod
    def _some_key(root):
        with os.scandir(os.path.join(root, "bench", "00")) as entries:
            return next(entries).path

    def _memory(self, bench, system, step, number, keys, empty):
        used = machine.anonymous_bytes(system.pid)
        bench.keep(f"memory/{step}", system.name, number,
                   {"keys": keys, "rss_anon_bytes": used, "empty_bytes": empty,
                    "bytes_per_key": (used - empty) / keys - self.NAME_BYTES})

    def _again(self, bench, system, how, number, keys):
        key = self._some_key(system.root)
        getattr(system.mount, how)()
        machine.settle(bench.workdir)
        started = time.monotonic()
        with bench.uring.enabled(system.transport == "uring"):
            system.mount.start()
        ready = time.monotonic() - started
        system.pid = system.mount.pid
        started = time.monotonic()
        with open(key, "rb") as f:
            f.read()
        hit = time.monotonic() - started
        stats = system.mount.stats()
        bench.keep(f"restart/{how}", system.name, number,
                   {"keys": keys, "ready_s": ready, "keys_per_s": keys / ready, "first_hit_ms": hit * 1e3,
                    "replay_s": stats["replay_ns"] / 1e9, "replay_entries": stats["replay_entries"]})

    def turn(self, bench, system, number):
        keys = max(2000, int(bench.args.keys * (0.01 if bench.args.quick else 1)))
        system.start()
        empty = machine.anonymous_bytes(system.pid)
        bench.client("put", os.path.join(system.root, "bench"), self.VALUE_BYTES, keys)
        self._memory(bench, system, "filled", number, keys, empty)
        self._again(bench, system, "kill", number, keys)
        self._memory(bench, system, "restarted", number, keys, empty)
        self._again(bench, system, "stop", number, keys)


class PageCache(Other):
    """Whether a big value that is read through the mount is in memory once or twice."""

    name, title = "page_cache", "memory the kernel holds for a big value"
    names = ("larder", "larder-dev")

    def obstacle(self, bench):
        return None if machine.cached_bytes(sys.executable) is not None else "cachestat(2) needs Linux 6.5"

    def turn(self, bench, system, number):
        size = (8 if bench.args.quick else 256) * MIB
        system.start()
        bench.client("big_write", system.root, size, size // MIB)
        system.mount.stop()
        machine.chill(system.disk)
        system.resume()
        before = sum(machine.cached_bytes(path) for path in machine.files_below(system.disk))
        bench.client("big_read", system.root, size, size // MIB)
        after = sum(machine.cached_bytes(path) for path in machine.files_below(system.disk))
        inode = machine.cached_bytes(os.path.join(system.root, "big-0"))
        bench.keep("page_cache", system.name, number,
                   {"ratio": (after - before + inode) / size, "of_store": (after - before) / size, "of_mount": inode / size})


# ---- caches that are no directory ----

class Caches(Other):
    """Put and get by the client each would be used by: from C through a socket or a directory, from Python by its library."""

    name, title = "caches", "4 KiB put and get: diskcache, redis, memcached, larder, bare"
    names = ("bare", "larder")
    VALUE_BYTES = 4 * KIB

    def setup(self, bench):
        self.place = os.path.join(bench.workdir, "caches")
        self.short = tempfile.mkdtemp(prefix="bench-")  # the path of a socket has 107 bytes at most
        self.servers = []
        self.sockets = {}
        os.makedirs(self.place)
        redis, memcached = os.path.join(self.short, "redis"), os.path.join(self.short, "memcached")
        self._serve(bench, "redis", redis, ["redis-server", "--port", "0", "--unixsocket", redis, "--save", "", "--appendonly",
                                            "no", "--dir", self.place])
        self._serve(bench, "memcached", memcached, ["memcached", "-s", memcached, "-m", "4096", "-u", "root"])

    def _serve(self, bench, name, socket, argv):
        if not shutil.which(argv[0]):
            bench.note(f"not run: {name}: {argv[0]} is not installed")
            return
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True, preexec_fn=lambda: systems.sysx.die_with_parent(signal.SIGTERM))
        self.servers.append(process)
        eventually(lambda: os.path.exists(socket) or process.poll() is not None, 10, f"{name} at its socket")
        if process.poll() is None:
            self.sockets[name] = (socket, process.pid)
        else:
            bench.note(f"failed: {name} ended at once")

    def teardown(self, bench):
        for process in self.servers:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.rmtree(self.short, ignore_errors=True)

    def _servers(self, bench, number, count):
        for name, (socket, pid) in self.sockets.items():
            for verb in ("put", "get"):
                before = machine.cpu_seconds(pid)
                result = bench.client(f"{name}_{verb}", socket, self.VALUE_BYTES, count, seed=number)
                result["daemon_s"] = machine.cpu_seconds(pid) - before
                bench.keep(f"caches/{verb}", name, number, result)

    def _python(self, bench, number, name, open_cache, pid=None):
        """put and get by functions of a Python library; `pid` is whose CPU time goes with it."""
        keys = [f"{i * 2654435761 % (1 << 64):024x}" for i in range(max(50, int(5000 * bench.factor)))]
        value = os.urandom(self.VALUE_BYTES)
        try:
            put, get, close = open_cache()
        except ImportError as error:
            bench.note(f"not run: {name}: {error}")
            return
        with contextlib.closing(_Closing(close)):
            for verb, call in (("put", lambda key: put(key, value)), ("get", get)):
                started, used, daemon = time.perf_counter_ns(), time.process_time(), machine.cpu_seconds(pid)
                for key in keys:
                    call(key)
                wall = (time.perf_counter_ns() - started) / 1e9
                bench.keep(f"caches/{verb}{'' if name == 'diskcache' else '_python'}", name, number,
                           {"workload": verb, "clients": 1, "operations": len(keys), "bytes": len(keys) * len(value),
                            "wall_s": wall, "mean_ns": wall * 1e9 / len(keys), "p50_ns": wall * 1e9 / len(keys),
                            "user_s": time.process_time() - used, "system_s": 0.0,
                            "daemon_s": machine.cpu_seconds(pid) - daemon})

    def _diskcache(self):
        import diskcache
        cache = diskcache.Cache(os.path.join(self.place, "diskcache"))
        return cache.set, cache.get, cache.close

    def _redis(self):
        import redis
        client = redis.Redis(unix_socket_path=self.sockets["redis"][0])
        return client.set, client.get, client.close

    def _memcached(self):
        from pymemcache.client.base import Client
        client = Client(self.sockets["memcached"][0])
        return (lambda key, value: client.set(key, value, noreply=False)), client.get, client.close

    @staticmethod
    def _directory(root):
        def put(key, value):
            path = os.path.join(root, key)
            with open(path + ".tmp", "wb", buffering=0) as f:
                f.write(value)
            os.rename(path + ".tmp", path)

        def get(key):
            with open(os.path.join(root, key), "rb", buffering=0) as f:
                return f.read()
        return put, get, lambda: None

    def turn(self, bench, system, number):
        count = max(50, int(20000 * bench.factor))
        system.start()
        for verb in ("put", "get"):
            result = bench.measured(system, lambda verb=verb: bench.client(verb, os.path.join(system.root, "bench"),
                                                                           self.VALUE_BYTES, count, seed=number))
            bench.keep(f"caches/{verb}", system.name, number, result)
        self._python(bench, number, system.name, lambda: self._directory(system.root), system.pid)
        if system.name != "bare":
            return
        self._servers(bench, number, count)  # once a round
        self._python(bench, number, "diskcache", self._diskcache)
        if "redis" in self.sockets:
            self._python(bench, number, "redis", self._redis, self.sockets["redis"][1])
        if "memcached" in self.sockets:
            self._python(bench, number, "memcached", self._memcached, self.sockets["memcached"][1])


class _Closing:
    def __init__(self, close):
        self.close = close


# ---- programs ----

class Program(Other):
    names = ("bare", "floor", "passthrough_hp", "mergerfs", "larder", "larder-dev")
    needs = ()

    def obstacle(self, bench):
        missing = [program for program in self.needs if not shutil.which(program)]
        return f"{', '.join(missing)}: not installed" if missing else None

    def setup(self, bench):
        self.place = os.path.join(bench.workdir, self.name)
        os.makedirs(self.place)

    def teardown(self, bench):
        shutil.rmtree(self.place, ignore_errors=True)

    def timed(self, bench, step, system, number, argv, **popen):
        machine.settle(bench.workdir)
        result = bench.measured(system, lambda: {"wall_s": run_program(argv, **popen)})
        bench.keep(step, system.name, number, {**result, "workload": self.name, "operations": 1, "clients": 0, "user_s": 0.0,
                                               "system_s": 0.0})


class Ccache(Program):
    """larder and libfuse compiled through ccache, whose cache is the system; the build directory is on the bare disk."""

    name, title, slow = "ccache", "a build of larder and libfuse through ccache, cold and all hits", True
    names = ("bare", "larder", "larder-dev", "mergerfs")
    needs = ("ccache", "meson", "ninja")
    TARGETS = ("fs/mount.larder", "tools/larder")

    def obstacle(self, bench):
        return super().obstacle(bench) or ("--quick leaves it out" if bench.args.quick else None)

    def setup(self, bench):
        super().setup(bench)
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self.build = os.path.join(self.place, "build")
        environment = {**os.environ, "CC": "ccache cc", "CCACHE_DISABLE": "1"}
        run_program(["meson", "setup", self.build, source], env=environment)

    def turn(self, bench, system, number):
        system.start()
        environment = {**os.environ, "CCACHE_DIR": os.path.join(system.root, "ccache"), "CCACHE_NOHASHDIR": "1"}
        environment.pop("CCACHE_DISABLE", None)
        for step in ("cold", "hits"):
            run_program(["ninja", "-C", self.build, "-t", "clean"])
            self.timed(bench, f"ccache/{step}", system, number, ["ninja", "-C", self.build, *self.TARGETS], env=environment)


class GitClone(Program):
    """A clone of this source tree, or of a history made of it, from the bare disk; then what a shell prompt asks."""

    name, title, slow = "git", "git clone and status", True
    names = ("bare", "passthrough_hp", "mergerfs", "larder", "larder-dev")
    needs = ("git",)

    def setup(self, bench):
        super().setup(bench)
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self.environment = {**os.environ, "HOME": self.place, "GIT_CONFIG_NOSYSTEM": "1", "GIT_AUTHOR_NAME": "a",
                            "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
        self.origin = os.path.join(self.place, "origin")
        run_program(["git", "init", "-q", self.origin], env=self.environment)
        for part in ("core", "fs", "tools", "tests", "packaging"):
            shutil.copytree(os.path.join(source, part), os.path.join(self.origin, part), symlinks=True,
                            ignore=shutil.ignore_patterns(".git", "__pycache__"))
        run_program(["git", "-C", self.origin, "add", "-Af"], env=self.environment)
        run_program(["git", "-C", self.origin, "commit", "-qm", "all"], env=self.environment)

    def turn(self, bench, system, number):
        system.start()
        clone = os.path.join(system.root, "clone")
        self.timed(bench, "git/clone", system, number, ["git", "clone", "-q", "--no-local", self.origin, clone],
                   env=self.environment)
        self.timed(bench, "git/status", system, number, ["git", "-C", clone, "status", "--porcelain"], env=self.environment)


class PipInstall(Program):
    """A wheel of many modules, made here, installed without any index."""

    name, title, slow = "pip", "pip install of a wheel of 2,000 modules", True
    names = GitClone.names
    FILES = 2000

    def obstacle(self, bench):
        done = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
        return f"{sys.executable} has no pip" if done.returncode else None

    def setup(self, bench):
        super().setup(bench)
        self.wheel = os.path.join(self.place, "many-1.0-py3-none-any.whl")
        about = "many-1.0.dist-info"
        files = {f"many/part{i % 50}/module{i}.py": f"# {i}\n" + f"value = {i}\n" * (i % 400)
                 for i in range(max(50, int(self.FILES * bench.factor)))}
        files[f"{about}/METADATA"] = "Metadata-Version: 2.1\nName: many\nVersion: 1.0\n"
        files[f"{about}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: bench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
        with zipfile.ZipFile(self.wheel, "w", zipfile.ZIP_DEFLATED) as z:
            for name, text in files.items():
                z.writestr(name, text)

    def turn(self, bench, system, number):
        system.start()
        self.timed(bench, "pip/install", system, number,
                   [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir",
                    "--disable-pip-version-check", "--root-user-action=ignore", "--target",
                    os.path.join(system.root, "target"), self.wheel], env={**os.environ, "TMPDIR": system.root})


ALL = [Quota(), Restart(), PageCache(), Caches(), Ccache(), GitClone(), PipInstall()]
