"""The operations of convolutional networks: pure functions for 1, 2 and 3 spatial dimensions, channels last.

Each has one public name; which form runs on which backend and shape is decided inside, by rules that stand with
their measurements in the code. All are differentiable in forward and reverse mode, in any order, under jit, vmap
and scan.
"""

from cnnjax.ops.bias import add_bias, channel_sums
from cnnjax.ops.compiler import compiler_options, fault_of_defaults, jit
from cnnjax.ops.convolution import conv, conv_transpose
from cnnjax.ops.dense import dense, dropout
from cnnjax.ops.members import members_in_turn
from cnnjax.ops.normalization import batch_norm, local_response_norm
from cnnjax.ops.placement import varying_with
from cnnjax.ops.pooling import Pooled, adaptive_avg_pool, avg_pool, max_pool, max_pool_with_switches, unpool
from cnnjax.ops.scanning import DenseLayer, apply_mlp, scan_mlp, scan_mlp_literally

__all__ = [
    "DenseLayer",
    "Pooled",
    "adaptive_avg_pool",
    "add_bias",
    "apply_mlp",
    "avg_pool",
    "batch_norm",
    "channel_sums",
    "compiler_options",
    "conv",
    "conv_transpose",
    "dense",
    "dropout",
    "fault_of_defaults",
    "jit",
    "local_response_norm",
    "max_pool",
    "max_pool_with_switches",
    "members_in_turn",
    "scan_mlp",
    "scan_mlp_literally",
    "unpool",
    "varying_with",
]
