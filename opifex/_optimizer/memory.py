import os

import jax


def device_memory() -> int:
    """Bytes of memory of the device that JAX computes on by default; of the machine,
    where the device is its processor."""
    stats = jax.local_devices()[0].memory_stats() or {}
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return int(stats.get("bytes_limit", pages * page))
