"""A script begins anew with its memory in huge pages, where the system has them for those that ask."""

import contextlib
import os
import re
import subprocess
import sys
import time

import pytest

import experiments


def tunables_of(process):
    """What the C library was told when the running process last began; it cuts the text at its colons."""
    with open(f"/proc/{process.pid}/environ", "rb") as file:
        return re.findall(r"glibc\.malloc\.\w+=\d", file.read().decode())


@pytest.mark.skipif(not experiments._gets_huge_pages_if_asked(), reason="no huge pages for those that ask")
@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (None, ["glibc.malloc.hugetlb=1"]),
        ("glibc.malloc.check=0", ["glibc.malloc.check=0", "glibc.malloc.hugetlb=1"]),
        ("glibc.malloc.hugetlb=0", ["glibc.malloc.hugetlb=0"]),
    ],
    ids=["nothing", "another", "the same"],
)
def test_a_script_asks_for_huge_pages_unless_the_user_has_chosen(given, wanted):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {} if given is None else {"GLIBC_TUNABLES": given}
    command = [sys.executable, "-m", "experiments.benchmark", "--suite", "nothing"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    found = []
    while process.poll() is None and found != wanted:
        time.sleep(0.001)
        with contextlib.suppress(OSError):
            found = tunables_of(process) or found  # it has none when it has just ended
    error = process.communicate()[1]
    assert found == wanted
    assert process.returncode == 2 and error.startswith("error: --suite must be among")


def test_a_system_that_has_none_for_those_that_ask_is_left_alone(monkeypatch, tmp_path):
    for text in ("[always] madvise never\n", "always madvise [never]\n"):
        (tmp_path / "enabled").write_text(text)
        monkeypatch.setattr(experiments, "_HUGE_PAGES", tmp_path / "enabled")
        assert not experiments._gets_huge_pages_if_asked()
    monkeypatch.setattr(experiments, "_HUGE_PAGES", tmp_path / "no such file")
    assert not experiments._gets_huge_pages_if_asked()
