"""Every matrix product is counted, whichever kernel computes it."""

import torch

from workbench.models.blocks_check import blocks_of
from workbench.studies.benchmarking import floating_point_operations


def test_every_matrix_product_is_counted_whichever_kernel_does_it(tiny_gpt2):
    blocks = blocks_of(tiny_gpt2)  # making them runs the model
    resid = torch.randn(7, tiny_gpt2.d_model)

    def work():
        return blocks.mlp_out(0, resid, resid)

    with torch.enable_grad():
        apart = floating_point_operations(work)
    with torch.no_grad():
        fused = floating_point_operations(work)
    assert apart == fused == 2 * 2 * 7 * tiny_gpt2.d_model * tiny_gpt2.d_mlp
