import pytest

from cnnjax.errors import InputError
from experiments import pages

PAGE = "# Title\n\n<!-- table -->\nold\n<!-- /table -->\n\nwords\n"


def test_what_stands_between_the_markers_is_replaced_and_the_rest_is_kept(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert pages.between(page, "table") == "old\n"
    pages.write(page, "table", "new\nlines\n\n")
    assert page.read_text() == PAGE.replace("old", "new\nlines")
    assert pages.between(page, "table") == "new\nlines\n"


def test_a_page_that_is_not_there_is_made_and_can_be_written_again(tmp_path):
    page = tmp_path / "page.md"
    pages.check(page, "table", "--markdown")
    pages.write(page, "table", "one")
    pages.write(page, "table", "two")
    assert page.read_text() == "<!-- table -->\ntwo\n<!-- /table -->\n"


@pytest.mark.parametrize(
    "text",
    [
        "no markers\n",
        "<!-- table -->\nold\n",
        "<!-- /table -->\nold\n<!-- table -->\n",
        PAGE + PAGE,
        "in words <!-- table -->\nold\n<!-- /table -->\n",
    ],
)
def test_a_page_without_its_markers_is_refused_and_stays(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    for refused in (
        lambda: pages.check(page, "table", "--markdown"),
        lambda: pages.write(page, "table", "new", "--markdown"),
    ):
        with pytest.raises(
            InputError, match="^--markdown must have <!-- table --> and <!-- /table -->, each on a line"
        ):
            refused()
    assert page.read_text() == text


def test_a_page_that_is_none_and_a_folder_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="^--markdown must be a page that can be read, got "):
        pages.check(tmp_path, "table", "--markdown")
    with pytest.raises(InputError, match="^--markdown must lie in a folder that is there, got "):
        pages.check(tmp_path / "none" / "page.md", "table", "--markdown")


def test_a_table_is_read_as_it_was_written():
    columns = {"one": {"a": "1", "c": "3"}, "two": {"b": "x, y", "c": "z"}}
    table = pages.table_of("letter", columns, ("c", "b", "none"))
    assert table.splitlines()[0] == "| letter | one | two |" and table.splitlines()[2] == "| c | 3 | z |"
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == ["| c", "| b", "| a"]
    assert pages.columns_of(f"words\n\n{table}\n") == columns
    assert pages.columns_of("Not measured yet.\n") == {}
