"""Every operation on eight simulated devices: the numbers of one device, and no image is sent from one to another."""

import functools
import json
import math
import os
import subprocess
import sys

import pytest

from tests.cases import some
from tests.ops import placed

# `long`, because there is another of the kind, or `a network` has it.
OTHERS = [
    *("conv, 1×1", "conv, strides", "conv, dilation", "linear_transpose", "add_bias", "batch_norm", "dense", "dropout"),
    *("max_pool", "adaptive_avg_pool", "local_response_norm", "scan_mlp", "scan_mlp_literally", "members_in_turn"),
]
CHOSEN = [name for name in placed.CASES if name not in OTHERS]


@functools.cache
def on_eight(in_every_run):
    """What one child process found of the cases of every run, and one of the long ones."""
    names = CHOSEN if in_every_run else OTHERS
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.ops.placed", json.dumps(names)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | settings, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("setting", placed.MESHES)
@pytest.mark.parametrize("name", some(placed.CASES, *CHOSEN))
def test_eight_devices_compute_what_one_does(name, setting):
    """Results and gradients: under `jit`, in `jax.shard_map` with its checks, and on Explicit axes."""
    found = on_eight(name in CHOSEN)[name][setting]
    assert not isinstance(found, str), found
    assert found < 1e-5


@pytest.mark.parametrize("in_every_run", [True, pytest.param(False, marks=pytest.mark.long)])
def test_devices_send_each_other_sums_and_nothing_else(in_every_run):
    """Under `jit`, of the gradients of weights and of statistics; none has the size of the images.

    So no form divides the images in a way that XLA must undo: not pieces of the batch, nor pads, nor sums by products.
    """
    sent = on_eight(in_every_run)["sent"]
    assert {kind for kind, _ in sent} == {"all-reduce"}
    assert max(size for _, size in sent) < math.prod(placed.IMAGES)
