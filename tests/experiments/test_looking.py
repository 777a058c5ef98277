"""Parts of a study that are kept, and what becomes of damaged ones."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.looking import Parts


@pytest.fixture
def trained(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {"sha256": "0"}}')
    return SimpleNamespace(variables={"w": np.ones(3)}, folder=tmp_path)


def test_a_part_is_computed_once(trained):
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(5)}

    for _ in range(2):
        np.testing.assert_array_equal(Parts(trained, "study", {"n": 1}).get("x", compute)["a"], np.arange(5))
    assert len(calls) == 1
    Parts(trained, "study", {"n": 2}).get("x", compute)
    Parts(SimpleNamespace(variables={"w": np.zeros(3)}, folder=trained.folder), "study", {"n": 2}).get("x", compute)
    assert len(calls) == 3


def test_no_flipped_bit_of_a_part_gives_another_value(trained):
    parts = Parts(trained, "study", {})
    wanted = np.random.default_rng(0).normal(size=50)
    parts.get("x", lambda: {"a": wanted})
    generator = np.random.default_rng(1)
    for name in ("x.npz", "x.sha256"):
        path = Path(trained.folder, "parts", "study", name)
        for bit in generator.integers(8 * path.stat().st_size, size=40):
            content = bytearray(path.read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            np.testing.assert_array_equal(parts.get("x", lambda: {"a": wanted})["a"], wanted)
