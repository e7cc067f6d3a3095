"""The cache of decoded images of a run: how large it is, who shares it, and what is in it."""

import logging
import socket

from accelerate.utils import gather_object

from mae.data.pixel_cache import PixelCache
from mae.utils.memory import available_memory, format_bytes, parse_memory


logger = logging.getLogger(__name__)

# Of the memory that is free when training starts. The cache stops to grow when a quarter is left, whoever uses it.
_SHARE, _LEFT = 2, 4


def open_pixel_cache(num_rows: int, cache_memory: str) -> PixelCache | None:
    """
    The cache of this rank's machine, which its ranks share. A collective.

    A rank that cannot reach the memory of the machine's first rank has none, and decodes its images in each epoch.

    Args:
        num_rows: Rows of the source.
        cache_memory: As in --cache_memory.

    Returns:
        None if there is none.
    """
    free = available_memory()
    automatic = cache_memory == "auto"
    max_bytes = free // _SHARE if automatic else parse_memory(cache_memory, free)
    if not max_bytes:
        return None
    sizes = num_rows, max_bytes, free // _LEFT if automatic else 0
    cache, machine = None, socket.gethostname()
    try:
        cache = PixelCache(*sizes)
    except (OSError, ValueError) as error:
        logger.warning(
            f"Decoded images are not kept in memory, because {format_bytes(max_bytes)} cannot be had: {error}"
        )
    own = None if cache is None else (cache.address, sizes)
    first = next(found for name, found in gather_object([(machine, own)]) if name == machine)
    if first == own:
        return cache
    try:
        return None if first is None else PixelCache.attach(first[0], *first[1])
    except OSError:
        return None


def describe(cache: PixelCache, cache_memory: str) -> str:
    """What is in a cache after an epoch, in a sentence."""
    share = f"{cache.num_images / cache.num_rows:.0%} of the training images, {format_bytes(cache.num_bytes)}"
    rest = " There is no room for the others, which are decoded in each epoch." if cache.is_full else ""
    return f"{cache.num_images:,} decoded images are kept in memory ({share}; --cache_memory {cache_memory}).{rest}"
