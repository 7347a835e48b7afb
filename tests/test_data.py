"""The reader of M-BEIR's layout."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from colours import write_benchmark, write_lines
from umarvel_hf.data import CANDIDATE_MODALITY, MODALITIES, Candidate, MBeir, Pool, Query, Task
from umarvel_hf.records import Ids, format_query, format_string, id_array

PLAIN = Task("plain", 0)


@pytest.fixture
def root(tmp_path):
    return write_benchmark(tmp_path / "data")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, ""),
        ("  \r\n ", ""),
        ("a cat", "A cat."),
        ('  "is it a cat?" ', "Is it a cat?"),
        ("Stop!", "Stop!"),
        ('he said "no"', 'He said "no.'),  # as the reference: the quote goes although its pair is inside
        ("été", "Été."),
    ],
)
def test_strings_are_formatted_as_in_the_reference(text, expected):
    assert format_string(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, ""), ("", ""), ("a cat", "a cat."), ('"a cat"', '"a cat.'), ("why?  ", "why?"), ("a\rb", "ab.")],
)
def test_a_query_text_is_formatted_behind_its_instruction(text, expected):
    reference = format_string(f"<instruction_start>Find it.<instruction_end> {text or ''}")
    assert format_query(text) == expected
    assert reference == f"<instruction_start>Find it.<instruction_end> {expected}" or not expected


def test_an_item_is_what_encode_takes():
    image = Path("a.png")
    assert Candidate("1:1", "A cat.", None, "text").item == "A cat."
    assert Candidate("1:1", "", image, "image").item == {"image": image}
    assert Query("1:1", "a cat.", image, "image,text", ("1:2",), 7).item == {"image": image, "text": "a cat."}


def test_tasks_are_found_and_ordered(root):
    tasks = MBeir(root).tasks()
    assert tasks == [Task("dark", 4), Task("plain", 0), Task("plain", 3)]
    assert [task.name for task in tasks] == ["dark_task4", "plain_task0", "plain_task3"]
    assert tasks[1].type == "text → image"


def test_queries_pools_and_qrels_are_read(root):
    data = MBeir(root)
    query = data.queries(PLAIN)[0]
    assert query == Query("1:0", "red.", None, "text", ("1:0",), 0)
    assert data.pool(PLAIN)["1:1"] == Candidate("1:1", "", root / "mbeir_images/plain_green.png", "image")
    assert data.pool(Task("plain", 3))["1:10"].text == "A red square."
    assert list(data.union_pool()) == [*data.pool(PLAIN), *data.pool(Task("plain", 3)), *data.pool(Task("dark", 4))]
    assert data.qrels(PLAIN)["1:0"] == {"1:0": 1}
    assert [one.qid for one in data.train_queries()] == [one.qid for one in data.queries(PLAIN)]
    assert len(data.union_pool("train")) == 6


def test_files_are_read_once_and_only_when_asked_for(root):
    data = MBeir(root)
    (root / "cand_pool/local/mbeir_plain_task3_cand_pool.jsonl").unlink()
    pool = data.pool(PLAIN)
    (root / "cand_pool/local/mbeir_plain_task0_cand_pool.jsonl").unlink()
    assert data.pool(PLAIN) is pool


def test_a_pool_of_the_split_goes_before_the_common_one(root):
    folder = root / "cand_pool/local"
    line = (folder / "mbeir_plain_task0_cand_pool.jsonl").read_text().splitlines()[0]
    write_lines(folder / "mbeir_plain_task0_test_cand_pool.jsonl", [line])
    assert list(MBeir(root).pool(PLAIN)) == ["1:0"]


def test_qrels_keep_all_relevant_answers_in_their_order(root):
    path = root / "qrels/test/mbeir_plain_task0_test_qrels.txt"
    path.write_text(path.read_text() + "1:0 0 1:3 1 0\n1:0\t0\t1:2\t2\t0\n1:0 0 1:1 0 0\n\n")
    assert list(MBeir(root).qrels(PLAIN)["1:0"].items()) == [("1:0", 1), ("1:3", 1), ("1:2", 2)]


def test_an_instruction_is_found_by_data_set_and_modalities(root):
    data = MBeir(root)
    assert data.instructions["1, text, image"] == ("Find its picture.", "Show it.")
    query = data.queries(PLAIN)[0]
    assert data.prompts(query, "image") == ("Find its picture.", "Show it.")


def test_a_missing_instruction_names_the_key_and_what_there_is(root):
    data = MBeir(root)
    query = data.queries(PLAIN)[0]
    with pytest.raises(
        ValueError, match=r"instructions.tsv: query '1:0' needs prompts for '1, text, text'.* 1, text, im"
    ):
        data.prompts(query, "text")


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        MBeir(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no test queries"):
        MBeir(tmp_path).tasks()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        MBeir(tmp_path).union_pool()
    assert not MBeir(tmp_path).has_union_pool("test")


def test_what_a_task_looks_for():
    assert set(CANDIDATE_MODALITY.values()) == set(MODALITIES)
    assert [CANDIDATE_MODALITY[task_id] for task_id in (0, 3, 8)] == ["image", "text", "image,text"]


def test_a_union_pool_may_be_absent(root):
    data = MBeir(root)
    assert data.has_union_pool("test") and data.has_union_pool("train") and not data.has_union_pool("val")


def test_a_pool_is_a_mapping_in_the_order_of_its_file(root):
    path = root / POOL
    path.write_text("\n" + "".join(f"{line}\n\n" for line in reversed(path.read_text().splitlines())))
    pool = MBeir(root).pool(PLAIN)
    assert list(pool) == ["1:5", "1:4", "1:3", "1:2", "1:1", "1:0"] and len(pool) == 6
    assert pool.dids.tolist() == [did.encode() for did in pool]
    assert pool.modalities.tolist() == 6 * [MODALITIES.index("image")] and pool.modalities.dtype == np.int8
    assert [candidate.did for candidate in pool.values()] == list(pool)
    assert dict(pool.items()) == {did: pool[did] for did in pool}
    assert pool.at([4, 0]) == [pool["1:1"], pool["1:5"]]
    assert pool.positions(["1:0", "1:77", "1:5", "1:123456789"]).tolist() == [5, -1, 0, -1]
    assert "1:3" in pool and "1:30" not in pool and 3 not in pool and pool.get("2:0") is None
    with pytest.raises(KeyError, match=r"'2:0' is not among the 6 candidates of .*task0_cand_pool.jsonl"):
        pool["2:0"]
    with pytest.raises(IndexError, match="Position -1"):
        pool.at([-1])


def test_an_empty_pool_is_refused(root):
    (root / POOL).write_text("\n")
    with pytest.raises(ValueError, match=r"plain_task0_cand_pool.jsonl has no candidates"):
        MBeir(root).pool(PLAIN)


def test_digests_tell_candidates_apart_by_what_the_file_says_of_them(tmp_path):
    changes = [
        {},
        {"txt": "b"},
        {"txt": "a."},
        {"img_path": "a"},
        {"modality": "image"},
        {"txt": None, "img_path": "a"},
    ]
    changes += [{"img_path": ""}, {"src": "elsewhere"}]  # as the first
    write_lines(
        tmp_path / "pool", [json.dumps(WHOLE | fields | {"did": f"1:{at}"}) for at, fields in enumerate(changes)]
    )
    pool = Pool(tmp_path / "pool", tmp_path)
    assert pool.digests.dtype == np.uint64 and pool.digests.shape == (8,) and len({*pool.digests[:6].tolist()}) == 6
    assert (pool.digests[6:] == pool.digests[0]).all()
    assert pool.subset(np.array([3, 1])).digests.tolist() == pool.digests[[3, 1]].tolist()


def test_ids_are_found_as_by_a_dict():
    names = [f"{one % 7}:{one * one}é" for one in range(70_000)]
    ids, places = Ids(id_array(names)), {name: at for at, name in reversed(list(enumerate(names)))}
    wanted = [*names[::97], "7:0", "", "6:1", f"{names[5]}0"]
    assert ids.positions(wanted).tolist() == [places.get(one, -1) for one in wanted]
    again = Ids(id_array([*"abcabca"]))
    assert again.positions(["a", "c"]).tolist() == [0, 2] and again.repeated().tolist() == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "now"),
    [
        (lambda text: text.replace('"1:3"', '"1:9"'), "'1:9'"),
        (lambda text: text[text.index("\n") + 1 :], "'no candidate'"),
        (lambda text: text[: text.index('"1:3"') + 20], "'no candidate'"),
    ],
)
def test_a_pool_that_changed_after_it_was_opened_is_refused(root, change, now):
    pool = MBeir(root).pool(PLAIN)
    path = root / POOL
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=rf"task0_cand_pool.jsonl has changed .* where '1:3' stood is now {now}"):
        pool["1:3"]
    with pytest.raises(ValueError, match="has changed since it was opened"):
        list(pool.values())


MEMORY = """
import sys
from pathlib import Path
from umarvel_hf.data import Pool
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = resident()
pool = Pool(Path(sys.argv[1]), Path("images"))
print(resident() - before, len(pool))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads resident memory as Linux gives it")
@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_a_large_pool_takes_little_memory(tmp_path, count):
    path = tmp_path / "pool.jsonl"
    text = "a caption as long as captions are in the wild, and then some more words to make sure " * 2
    with path.open("w") as file:
        for at in range(count):
            file.write(json.dumps(WHOLE | {"did": f"7:{at * 7919 % count}", "txt": text}) + "\n")
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    grown, size = map(int, done.stdout.split())
    assert size == count
    assert grown < 300 * count  # 300 MB for a million; the file has more than that for each line
    assert grown < path.stat().st_size / 2


QUERIES = "query/test/mbeir_plain_task0_test.jsonl"
POOL = "cand_pool/local/mbeir_plain_task0_cand_pool.jsonl"
QRELS = "qrels/test/mbeir_plain_task0_test_qrels.txt"
INSTRUCTIONS = "instructions/query_instructions.tsv"
ASKED = {
    "qid": "1:9",
    "query_txt": "a",
    "query_img_path": None,
    "query_modality": "text",
    "pos_cand_list": ["1:0"],
    "task_id": 0,
}
WHOLE = {"did": "1:9", "txt": "a", "img_path": None, "modality": "text"}


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (POOL, '{"did": "1:9", "txt": "cut sh', r"cand_pool.jsonl:7: not JSON .*cut sh"),
        (POOL, '["1:9"]', r"cand_pool.jsonl:7: the record is not an object"),
        (POOL, '{"did": "1:9", "txt": "a"}', r"cand_pool.jsonl:7: the record lacks img_path, modality"),
        (POOL, json.dumps(WHOLE | {"did": "1:0"}), r"cand_pool.jsonl:7: did '1:0' stands on an earlier line"),
        (POOL, json.dumps(WHOLE | {"modality": "sound"}), r"cand_pool.jsonl:7: '1:9' has modality 'sound'"),
        (POOL, json.dumps(WHOLE | {"txt": ' "" '}), r"cand_pool.jsonl:7: '1:9' has neither text nor image"),
        (POOL, json.dumps(WHOLE | {"did": None}), r"cand_pool.jsonl:7: None has did None, not a string of"),
        (POOL, json.dumps(WHOLE | {"did": 9}), r"cand_pool.jsonl:7: 9 has did 9, not a string of printable"),
        (POOL, json.dumps(WHOLE | {"did": "1: 9"}), r"cand_pool.jsonl:7: '1: 9' has did '1: 9', not a string"),
        (POOL, json.dumps(WHOLE | {"txt": ["a"]}), r"cand_pool.jsonl:7: '1:9' has txt \['a'\], not a string or null"),
        (POOL, json.dumps(WHOLE | {"modality": None}), r"cand_pool.jsonl:7: '1:9' has modality None, not one of"),
        (POOL, json.dumps(WHOLE | {"txt": "a\ud800"}), r"cand_pool.jsonl:7: '1:9' has txt 'a\\ud800', not .* as UTF-8"),
        (
            POOL,
            json.dumps(WHOLE | {"did": "1:\u200d9"}),
            r"cand_pool.jsonl:7: .*, not .*printable characters without sp",
        ),
        (QUERIES, '{"qid": "1:9"}', r"test.jsonl:7: the record lacks query_txt"),
        (QUERIES, '{"qid": "1:9", "que', r"test.jsonl:7: not JSON .* Is the file cut short"),
        (QUERIES, json.dumps(ASKED | {"qid": None}), r"test.jsonl:7: None has qid None, not a string of printable"),
        (QUERIES, json.dumps(ASKED | {"pos_cand_list": None}), r"test.jsonl:7: '1:9' has pos_cand_list None, not a"),
        (QUERIES, json.dumps(ASKED | {"pos_cand_list": "1:0"}), r"test.jsonl:7: '1:9' has pos_cand_list '1:0', not a"),
        (QUERIES, json.dumps(ASKED | {"pos_cand_list": [10]}), r"test.jsonl:7: '1:9' has pos_cand_list \[10\], not a"),
        (QUERIES, json.dumps(ASKED | {"task_id": "0"}), r"test.jsonl:7: '1:9' has task_id '0', not a number"),
        (QUERIES, json.dumps(ASKED | {"task_id": 99}), r"test.jsonl:7: '1:9' has task_id 99, not a number from 0 to 8"),
        (QUERIES, json.dumps(ASKED | {"query_img_path": 3}), r"test.jsonl:7: '1:9' has query_img_path 3, not a"),
        (QRELS, "1:0 0 1:1 1", r"test_qrels.txt:7: '1:0 0 1:1 1' is not of the form"),
        (QRELS, "1:0 0 1:1 high 0", r"test_qrels.txt:7: .* is not of the form"),
        (QRELS, "1:0 0 1:77 1 0", r"test_qrels.txt:7: answer '1:77' of query '1:0' is not among the 6 candidates"),
        (QRELS, "1:2 0 1:2 0 0", r"test_qrels.txt:7: answer '1:2' of query '1:2' has relevance 0 here and 1 on an"),
        (QRELS, "1:77 0 1:0 1 0", r"test_qrels.txt:7: query '1:77' is not among the 6 of plain_task0"),
        (INSTRUCTIONS, "text\timage\tplain\t8", r"instructions.tsv:5: 4 tab-separated columns"),
        (INSTRUCTIONS, "text\timage\tplain\t8\t \t", r"instructions.tsv:5: 6 tab-separated columns"),
        (INSTRUCTIONS, "text\timage\tplain\t1\tAgain.", r"instructions.tsv:5: a second line for '1, text, image'"),
    ],
)
def test_a_bad_line_is_named(root, file, line, message):
    path = root / file
    path.write_text(path.read_text() + line + "\n")
    data = MBeir(root)
    read = {POOL: data.pool, QUERIES: data.queries, QRELS: data.qrels, INSTRUCTIONS: lambda _: data.instructions}
    with pytest.raises(ValueError, match=message):
        read[file](PLAIN)


@pytest.mark.parametrize("file", [POOL, QUERIES, QRELS, INSTRUCTIONS])
def test_a_line_cut_inside_a_letter_is_named(root, file):
    number = len((root / file).read_text().splitlines()) + 1
    with (root / file).open("ab") as opened:
        opened.write('{"did": "1:9", "txt": "é'.encode()[:-1])
    data = MBeir(root)
    read = {POOL: data.pool, QUERIES: data.queries, QRELS: data.qrels, INSTRUCTIONS: lambda _: data.instructions}
    with pytest.raises(ValueError, match=rf"{Path(file).name}:{number}: not UTF-8"):
        read[file](PLAIN)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
@pytest.mark.parametrize("file", [POOL, QUERIES, QRELS])
def test_a_byte_order_mark_is_named(root, file, encoding):
    (root / file).write_text((root / file).read_text(), encoding=encoding)
    data = MBeir(root)
    read = {POOL: data.pool, QUERIES: data.queries, QRELS: data.qrels}
    with pytest.raises(ValueError, match=rf"{Path(file).name}:1: the file starts with a byte order mark; save it as"):
        read[file](PLAIN)


def test_a_query_that_stands_twice_is_refused(root):
    path = root / QUERIES
    path.write_text(path.read_text() + path.read_text().splitlines()[0])
    with pytest.raises(ValueError, match="qid '1:0' stands on two lines"):
        MBeir(root).queries(PLAIN)


def test_a_file_without_queries_is_refused(root):
    (root / QUERIES).write_text("\n")
    with pytest.raises(ValueError, match="is empty: plain_task0 has no test queries"):
        MBeir(root).queries(PLAIN)


def test_a_query_without_answer_is_named(root):
    path = root / QRELS
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ValueError, match="1 of 6 queries have no right answer, '1:0' the first"):
        MBeir(root).qrels(PLAIN)


def test_a_task_id_that_m_beir_does_not_have_is_refused(root):
    path = root / QUERIES
    path.rename(path.with_name("mbeir_plain_task9_test.jsonl"))
    with pytest.raises(ValueError, match="plain_task9"):
        MBeir(root).tasks()
