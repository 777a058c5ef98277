import resource

import pytest

from cnnjax.data import memory
from cnnjax.data.memory import require_memory
from cnnjax.errors import InputError


@pytest.fixture(autouse=True)
def no_limits(monkeypatch):
    """Neither this machine's container nor its `ulimit -v` has a say."""
    monkeypatch.setattr(memory, "_CONTAINER", ())
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)


def test_more_than_the_machine_has_is_refused_by_what_is_needed():
    require_memory(1000, "the images")
    with pytest.raises(
        InputError, match="the images need 1,000,000,000,000,000 bytes of memory, and there are at most"
    ):
        require_memory(10**15, "the images")


def test_more_than_the_container_may_have_is_refused(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("4096\n")
    monkeypatch.setattr(memory, "_CONTAINER", (tmp_path / "none", tmp_path / "memory.max"))
    require_memory(4096, "the images")
    with pytest.raises(InputError, match="need 4,097 bytes of memory, and there are at most 4,096"):
        require_memory(4097, "the images")
    (tmp_path / "memory.max").write_text("max\n")
    require_memory(4097, "the images")


def test_what_is_in_use_counts_against_the_limit_of_addresses(monkeypatch):
    used = memory._mapped()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (used + (1 << 30), used + (1 << 30)))
    require_memory(1 << 28, "the images")
    with pytest.raises(InputError, match="need 2,147,483,648 bytes"):
        require_memory(1 << 31, "the images")
