"""The cores that a process may use, and pools of threads on them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache


def cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


@cache
def thread_pool(threads: int, cores: tuple[int, ...]) -> ThreadPoolExecutor:
    """A pool of that many threads.

    If there are as many threads as cores, each thread is bound to one: Linux was seen to leave two
    threads on the same core.
    """
    unused_cores = list(cores) if threads == len(cores) else []

    def bind_to_core() -> None:
        if unused_cores and hasattr(os, "sched_setaffinity"):
            with suppress(OSError):  # where a sandbox forbids it
                os.sched_setaffinity(0, {unused_cores.pop()})  # 0: only the calling thread

    return ThreadPoolExecutor(
        threads, thread_name_prefix="good-rt-engine", initializer=bind_to_core
    )
