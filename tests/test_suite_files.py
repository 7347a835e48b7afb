"""Files of the zero-shot sets: places in JSON, and what a hostile file of torch or pickle can do (nothing)."""

import os
import pickle
import random

import pytest
import torch

from umarvel_hf.evaluation.suite_files import (
    Record,
    below,
    checked,
    csv_records,
    json_records,
    numbered_files,
    pickled_data,
    tensor_file,
)


class Hostile:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_hostile_tensor_file_is_refused_and_runs_nothing(tmp_path):
    torch.save({"image_paths": [Hostile(tmp_path / "ran")], "annotations": []}, tmp_path / "a.pt")
    told = (
        r"a\.pt: not plain data that torch\.save wrote \(it names classes or functions, or is cut short\)\. Nothing in"
    )
    with pytest.raises(ValueError, match=told):
        tensor_file(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, protocol):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"clip": [[Hostile(tmp_path / "ran")]]}, protocol))
    with pytest.raises(
        ValueError, match=r"a\.pkl: not plain pickled data \(it asks for .*system.*Nothing in it was run"
    ):
        pickled_data(tmp_path / "a.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [random.Random(0), {1, 2}, complex(1, 2), bytearray(b"a")])
def test_a_pickle_of_a_class_is_refused_also_where_it_is_harmless(tmp_path, value):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, 2))
    with pytest.raises(ValueError, match="plain data ask for nothing"):
        pickled_data(tmp_path / "a.pkl")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickled_data_are_read(tmp_path, protocol):
    value = {"clip_1": [["a", "man"], ["ein", "Mann", "läuft"]], "clip_2": [[]]}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value, protocol))
    assert pickled_data(tmp_path / "a.pkl") == value


@pytest.mark.parametrize("read", [tensor_file, pickled_data])
def test_a_damaged_file_is_refused(tmp_path, read):
    torch.save({"a": [1]}, tmp_path / "whole.pt")
    (tmp_path / "whole.pkl").write_bytes(pickle.dumps({"a": ["one"] * 100}))
    whole = tmp_path / ("whole.pt" if read is tensor_file else "whole.pkl")
    for cut in (0, 1, 40):
        (tmp_path / "cut").write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(ValueError, match="cut: not plain"):
            read(tmp_path / "cut")


def test_records_of_json_have_their_lines(tmp_path):
    (tmp_path / "a.json").write_text('\n{"x": 1,\n "data":{"y": [0 , {\n"b": [1, 2]\n}\n,\n\n"c"]}}')
    found = list(json_records("data", "y")(tmp_path / "a.json"))
    assert [one.value for one in found] == [0, {"b": [1, 2]}, "c"]
    assert [one.place.rpartition(":")[2] for one in found] == ["3, record 0", "3, record 1", "8, record 2"]
    (inner,) = json_records("data")(tmp_path / "a.json")
    assert inner.place.endswith(":3, record 'y'")


def test_empty_json_has_no_records_and_a_number_is_refused(tmp_path):
    for text in ("[]", "{ }"):
        (tmp_path / "a.json").write_text(text)
        assert list(json_records()(tmp_path / "a.json")) == []
    (tmp_path / "a.json").write_text("7")
    with pytest.raises(ValueError, match=r"a\.json:1: '7' is neither an array nor an object"):
        list(json_records()(tmp_path / "a.json"))
    with pytest.raises(ValueError, match=r"a\.json:1: lacks 'x'; needed is x\.y"):
        list(json_records("x", "y")(tmp_path / "a.json"))


def test_a_row_of_csv_may_run_over_lines(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"two\nlines"\n2,one\u2028line\n')
    assert [one.value["text"] for one in csv_records(tmp_path / "a.csv")] == ["two\nlines", "one\u2028line"]
    (tmp_path / "a.csv").write_text('id,text\n1,"two\n')
    with pytest.raises(ValueError, match=r"a\.csv:2: not CSV"):
        list(csv_records(tmp_path / "a.csv"))


def test_a_gap_among_numbered_files_is_named(tmp_path):
    for number in (1, 3):
        (tmp_path / f"{number}.txt").write_text("a")
    with pytest.raises(ValueError, match=r"2 files must be 1\.txt to 2\.txt, but 3\.txt is among them"):
        list(numbered_files(tmp_path))


@pytest.mark.parametrize(
    ("value", "schema", "told"),
    [
        (True, int, "here: the record is True, not a whole number"),
        ({"a": [1, "x"]}, {"a": [int]}, r"here: a\[1\] is 'x', not a whole number"),
        ([1], (object, str), "here: the record has 1 entries; needed are 2"),
        ({"a": {}}, {"a": {"b": str}}, r"here: lacks a\.b"),
        ("x" * 200, list, r"here: the record is 'xx+\.\.\.x+', not a list"),
    ],
)
def test_what_does_not_fit_is_named(value, schema, told):
    with pytest.raises(ValueError, match=told):
        checked(Record("here", value), schema)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000 + "]" * 100_000, "a.json: cannot be read .*recursion"),
        ("[1" + "0" * 5000 + "]", "a.json: cannot be read .*Exceeds the limit"),
        ('[{"a": 1, "a": 2}]', r"a\.json: cannot be read .an object has 'a' twice"),
        ("", r"a\.json:1: not JSON"),
        ("[1, 2", r"a\.json:1: not JSON"),
    ],
)
def test_json_that_cannot_be_read_names_its_file(tmp_path, text, told):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=told):
        list(json_records()(tmp_path / "a.json"))


def test_a_string_that_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match=r"here: a is .*, not a string that can be written as UTF-8"):
        checked(Record("here", {"a": "\ud800"}), {"a": str})


def test_nested_beyond_measure_is_shown_in_short():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match=r"here: the record is \[\[.*, not an object"):
        checked(Record("here", deep), dict)


@pytest.mark.parametrize("name", ["03.txt", "0.txt", "notes.txt", "4.txt"])
def test_other_names_among_numbered_files_are_refused(tmp_path, name):
    for one in ("1.txt", "2.txt", name):
        (tmp_path / one).write_text("a")
    with pytest.raises(ValueError, match=rf"3 files must be 1\.txt to 3\.txt, but {name} is among them"):
        list(numbered_files(tmp_path))


def test_the_first_line_counts_also_where_it_is_blank(tmp_path):
    (tmp_path / "1.txt").write_text("\na dog")
    with pytest.raises(ValueError, match=r"1\.txt:1: the line is blank"):
        list(numbered_files(tmp_path))


def test_a_name_too_long_for_a_file_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"does not exist, but here names it"):
        below(tmp_path, "here", "x" * 5000)
