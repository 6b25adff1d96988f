"""Where and how a run computes."""

import platform
import subprocess
import sys

import pytest

FILL = """
import resource
import torch
from bnexp.training.device import keep_freed_memory

def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.empty(2**26, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
before = page_faults()
keep_freed_memory()
page_faults()
print(before, page_faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep freed memory")
def test_freed_memory_is_kept_for_the_next_tensors() -> None:
    found = subprocess.run([sys.executable, "-c", FILL], capture_output=True, check=True, text=True).stdout
    before, after = map(int, found.split())
    assert before > 100
    assert after < before / 20
