"""What the bits depend on is in config.json, and what of it is other on the way is said in one line."""

import json
import shutil

from cnnjax.environment import changes, environment
from cnnjax.train import run as running
from tests.train.small import CONFIG, same


def test_what_the_bits_depend_on_is_recorded(whole):
    record = json.loads((whole[1] / "config.json").read_text())
    found = environment()
    assert {name: record[name] for name in found} == found
    assert found["cores"] >= 1 and found["processor"]["machine"] and "resumed_in" not in record
    assert found["settings"]["jax_threefry_partitionable"] is not None and found["versions"]["jaxlib"]


def test_a_change_is_named_and_what_an_older_version_did_not_record_is_none():
    here = environment()
    there = json.loads(json.dumps(here)) | {"cores": here["cores"] + 1}
    there["variables"] = {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}
    there["processor"]["vectors"] = ["avx512f"]
    assert changes(here, there) == [
        f"cores: {here['cores']} here, {here['cores'] + 1} there",
        f"processor.vectors: {here['processor']['vectors']} here, ['avx512f'] there",
        "variables.XLA_FLAGS: None here, --xla_cpu_enable_fast_math=true there",
    ]
    assert changes(here, {"versions": here["versions"], "config": {}}) == [] == changes(here, [1])
    assert changes(here, {"processor": 1})[0].startswith("processor: None here, 1 there")


def test_a_run_that_goes_on_elsewhere_says_so_once_and_records_it(dataset, whole, tmp_path):
    """As if it had been begun with more cores; in truth the bits are the same."""
    finished, workdir = whole
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    began = running.read_sealed(path) | {"cores": 1000}
    path.write_text(running.sealed(began))
    said = []
    running.run(CONFIG, dataset, tmp_path / "run", say=said.append)
    assert said == []  # it is finished, nothing is computed
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "epochs" / "2")
    again = running.run(CONFIG, dataset, tmp_path / "run", say=said.append)
    same(again.states, finished.states)
    (line,) = said
    assert line.startswith(f"{tmp_path / 'run'} goes on otherwise than before, so it may end with other bits (cores: ")
    assert line.endswith("here, 1000 there)")
    record = running.read_sealed(path)
    assert record["cores"] == 1000 and record["resumed_in"] == [environment()]
    (copy,) = [running.unsealed((folder / "config.json").read_text()) for folder in path.parent.glob("checkpoints/*/2")]
    assert copy == record
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "epochs" / "1")
    running.run(CONFIG, dataset, tmp_path / "run", say=said.append)
    assert len(said) == 1 and running.read_sealed(path) == record
