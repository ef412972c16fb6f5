"""What is freed stays with the process, so that using it again faults in no page."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from rest.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def use(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = library.malloc(size)
    ctypes.memset(block, 1, size)
    library.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
use(100 << 20)
print(use(100 << 20))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is of glibc on Linux")
def test_a_block_that_was_freed_is_used_again_without_new_pages():
    faults = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, check=True).stdout)
        for how in ("returned", "kept")
    }
    assert faults["kept"] < 100
    assert faults["returned"] > 10 * faults["kept"] + 10  # huge pages may make these few too
