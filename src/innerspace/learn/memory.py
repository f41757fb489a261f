"""Memory that a fit frees stays with the process until the fit is over.

glibc gives blocks above 32 MiB back to the system as soon as they are free, and every new one costs a page fault per
4 KiB. A step with a dense code makes five of them, which is a tenth of its time. What a fit keeps, such as the moments
of its optimizer, is better mapped apart: among blocks that come and go it would leave holes that nothing else fits.
"""

import ctypes
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Names of settings in glibc's malloc.h."""


@contextmanager
def retained() -> Generator[Callable[[], None]]:
    """From the call of what it gives to the end of the ``with``, freed memory is used again and not returned.

    Before that call every large block is a mapping of its own, and afterwards all is as usual. Without glibc, nothing.
    """
    glibc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if glibc is None or not _has(glibc, "gnu_get_libc_version"):
        yield lambda: None
        return

    def retain() -> None:
        glibc.mallopt(_MMAP_MAX, 0)
        glibc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)

    glibc.mallopt(_MMAP_THRESHOLD, 2**20)
    try:
        yield retain
    finally:
        # the defaults, but for the thresholds: where they end up by themselves after the first large blocks
        glibc.mallopt(_MMAP_MAX, 2**16)
        glibc.mallopt(_MMAP_THRESHOLD, 2**25)
        glibc.mallopt(_TRIM_THRESHOLD, 2**26)
        glibc.malloc_trim(0)


def _has(library: ctypes.CDLL, name: str) -> bool:
    try:
        library[name]
    except AttributeError:
        return False
    return True
