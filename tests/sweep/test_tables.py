import csv
import io

import pytest

from cnnjax.errors import InputError
from cnnjax.sweep import study, tables
from tests.sweep import sweeps


def result(state="finished", diverged=None):
    (member,) = sweeps.members(model__dense=[(4, 8)])
    lines = [{"epoch": 0, "test_error": 0.5}, {"epoch": 1, "train_loss": 2.25, "validation_error": 0.125}]
    return study.Result(member, state, lines, 1.25, [], diverged)


def rows(text):
    return list(csv.reader(io.StringIO(text)))


def test_the_table_of_members_writes_tuples_as_an_axis_takes_them_and_leaves_empty_what_there_is_not():
    assert rows(tables.members_table([result()])) == [
        ["member", "model.dense", "state", "diverged_epoch", "diverged_step", "seconds", "final_epoch",
         "final_train_loss", "final_validation_error", "final_test_error", "test_error_0", "test_error_1"],
        ["0", "4x8", "finished", "", "", "1.25", "1", "2.250000", "0.125000", "", "0.500000", ""],
    ]  # fmt: skip


def test_a_member_that_diverged_has_its_epoch_and_step_in_columns():
    (row,) = csv.DictReader(io.StringIO(tables.members_table([result("diverged at epoch 2, step 3 of 5", (2, 3))])))
    assert (row["state"], row["diverged_epoch"], row["diverged_step"]) == ("diverged", "2", "3")


def test_the_table_of_curves_is_long():
    assert rows(tables.curves_table([result()])) == [
        ["member", "model.dense", "epoch", "split", "loss", "error", "error_top5"],
        ["0", "4x8", "0", "test", "", "0.500000", ""],
        ["0", "4x8", "1", "train", "2.250000", "", ""],
        ["0", "4x8", "1", "validation", "", "0.125000", ""],
    ]


def test_curves_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text(tables.curves_table([result()]))
    assert tables.read_curves(path) == {0: result().metrics}


@pytest.mark.parametrize("text", ["member,epoch\n0,1\n", "member,epoch,split,loss,error,error_top5\nx,0,test,1,1,1\n"])
def test_another_table_is_refused(tmp_path, text):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"curves.csv must be a table as experiments.sweep writes it"):
        tables.read_curves(path)
    with pytest.raises(InputError, match=r"none.csv must be a table"):
        tables.read_curves(tmp_path / "none.csv")
