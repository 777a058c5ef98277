import pytest

from cnnjax.data import load
from cnnjax.train import run as running
from tests.train.small import CONFIG


@pytest.fixture(scope="session")
def dataset():
    return load(CONFIG.data)


@pytest.fixture(scope="session")
def whole(dataset, tmp_path_factory):
    """The finished run of CONFIG and its folder, which must stay as it is."""
    workdir = tmp_path_factory.mktemp("run") / "whole"
    return running.run(CONFIG, dataset, workdir), workdir
