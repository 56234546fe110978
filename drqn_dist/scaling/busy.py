"""How busy the cores are."""

from __future__ import annotations

import os

import psutil


def busy_cpu_s() -> float:
    """CPU seconds so far of everything that runs on the cores that this process may use. A container that is bounded by
    a quota instead of by cores sees its host's."""
    times = psutil.cpu_times(percpu=True)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(times))
    kinds = ("user", "system", "nice", "irq", "softirq")
    return sum(getattr(times[core], kind, 0.0) for core in usable if core < len(times) for kind in kinds)
