"""Keeping memory that was freed, so that the next update does not have to ask for it page by page.

XLA on CPU frees what a compiled program needed besides its arguments, some hundred megabytes, after every call. The C
library of Linux gives blocks of that size back to the system at once, and each of their pages is faulted in anew by
the next call: about a fifth of the time of an update on two cores (experiments/LOG.md, 2026-11-22).
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX, ARENA_MAX = -1, -2, -4, -8  # of mallopt(3)


def keep_freed_memory() -> None:
    """Let this process hold on to what it frees: call it first of all, before anything has threads.

    Nothing happens where the C library is not glibc. The process keeps the size of its largest moment, and what is
    freed in pieces may not fit the next program: in one that ran updates of three batch sizes it was 1.9 times as
    large. Environment variables (`MALLOC_ARENA_MAX` and so on) that name other values are overruled.
    """
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return
    # one arena, since those of threads are unmapped when they are empty; on the heap, which is never trimmed
    for parameter, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1), (TOP_PAD, 64 << 20)):
        library.mallopt(ctypes.c_int(parameter), ctypes.c_int(value))
