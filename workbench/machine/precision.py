"""How a device multiplies float32 matrices: as they are, or rounded to TF32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PRECISIONS = {"float32": "highest", "tf32": "high"}
"""Names of precisions, and torch's for them."""


@contextmanager
def float32_products(precision: str = "float32") -> Iterator[None]:
    """Multiply float32 matrices in that precision inside; what was set before comes back, also after an error.

    "tf32" rounds the factors to 10 bits behind the point, by 5e-4 of their size at most, where the device has kernels
    for that, such as Nvidia's tensor cores. Other dtypes stay as they are. ValueError for another name.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(PRECISIONS[precision])
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
