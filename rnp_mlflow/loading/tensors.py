"""Tensors over bytes of a file: every element must be in the file."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOST_DIMENSIONS, LARGEST = 16, 2**40


def strided(values: Tensor, offset: Any, sizes: Sequence[Any], strides: Sequence[Any]) -> Tensor:
    """Return a view of the elements (N,) of a storage.

    Raises:
        ValueError: a number is not one that such a view can have, or an element is beyond the storage.
    """
    numbers = [offset, *sizes, *strides]
    if any(type(number) is not int or not 0 <= number < LARGEST for number in numbers):
        raise ValueError("a size, stride or offset of a tensor is not a number, or out of bounds")
    if len(sizes) > MOST_DIMENSIONS or len(sizes) != len(strides):
        raise ValueError("a tensor has too many dimensions, or as many strides as it should not")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if math.prod(sizes) >= LARGEST or (math.prod(sizes) and last >= len(values)) or offset > len(values):
        raise ValueError("a tensor is larger than its bytes")
    return values.as_strided(sizes, strides, offset)


def empty(dtype: torch.dtype, count: Any, most: int) -> Tensor:
    """Return memory for the elements (count,) of a storage; they must all be read from the file.

    most: bytes.

    Raises:
        ValueError: the count is none, or they are more bytes.
    """
    if type(count) is not int or not 0 <= count * dtype.itemsize <= most:
        raise ValueError("a storage is larger than its file")
    return torch.empty(count, dtype=dtype)


def raw(values: Tensor) -> memoryview:
    """Return the memory of a tensor (N,) to read bytes into."""
    return values.view(torch.uint8).numpy().data
