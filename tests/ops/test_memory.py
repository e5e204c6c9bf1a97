"""What real messages say, of a lack of memory and of other things."""

import pytest
import torch

from summarymixing.ops.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 8589934592 bytes. Error code 12 (Cannot allocate memory)"
        ),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory"),
        RuntimeError("could not create a memory object"),
        RuntimeError("failed to allocate 4096 bytes for packed weights"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        OSError(12, "Cannot allocate memory"),
    ),
    ids=lambda error: f"{type(error).__name__} {error}"[:50],
)
def test_a_lack_of_memory(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "message",
    (
        "",
        "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
        "The tensor has a non-zero number of elements, but its data is not allocated yet.",
        "could not create a memory descriptor from blob",
        "CUDA error: an illegal memory access was encountered",
    ),
)
def test_other_errors(message):
    assert not is_out_of_memory(RuntimeError(message))
