"""What a lack of memory looks like, wherever it is met."""

import re

import torch

# PyTorch's allocators, C++, oneDNN and CUDA's libraries say it in a RuntimeError's text only.
_SAID = re.compile(
    r"out of memory|not enough memory|(can't|cannot|failed to) allocate|bad_alloc|_ALLOC_FAILED"
    r"|could not create a memory( object)?$",
    re.IGNORECASE,
)


def is_out_of_memory(error):
    """Whether an error is the device's or the process's lack of memory.

    Example
    -------
    >>> try:
    ...     torch.empty(2**60)
    ... except RuntimeError as error:
    ...     is_out_of_memory(error)
    True
    >>> is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b"))
    False
    """
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or bool(
        _SAID.search(str(error))
    )
