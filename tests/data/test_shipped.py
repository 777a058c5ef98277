import subprocess
import sys

import pytest

from cnnjax.data.shipped import shipped_file
from cnnjax.errors import InputError


def test_a_file_that_is_not_shipped_is_named_with_the_data_set_that_needs_it():
    with pytest.raises(InputError, match=r"data\.name photos needs the file a\.png that sklearn ships .*__init__\.py"):
        shipped_file("photos", "sklearn", "a.png")
    with pytest.raises(InputError, match=r"data\.name photos needs the file a\.png that nowhere ships .*not installed"):
        shipped_file("photos", "nowhere", "a.png")


def test_the_embedded_data_sets_are_read_without_the_packages_that_ship_them():
    program = """
import sys
from cnnjax.config import DataConfig
from cnnjax.data import load
for name in ("digits", "photos"):
    load(DataConfig(name=name))
assert not {"sklearn", "skimage", "scipy.stats"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
