"""What rows are made of, and what becomes of those that cannot be trained on."""

import json
import random
import re
from hashlib import blake2b

import numpy as np
import psutil
import pytest
from datasets import Dataset, Image

from colours import write_benchmark, write_training_split
from pictures import picture
from umarvel_hf.data import MBeir, Query
from umarvel_hf.messages import chat
from umarvel_hf.negatives import Filters, MinedList, NegativeTable, Strategy
from umarvel_hf.trainer.losses import PADDING_ID
from umarvel_hf.trainer.rows import TrainingRows
from umarvel_hf.trainer.sources import Choice, MBeirRows, Pairs, Quarantine, TeacherLists

QUERIES = "query/union_train/mbeir_union_up_train.jsonl"
POOL = "cand_pool/global/mbeir_union_train_cand_pool.jsonl"


@pytest.fixture
def root(tmp_path):
    """Three tasks of six queries. Candidates of colour n: 1:n plain, 1:1n dark, 1:2n text."""
    return write_training_split(write_benchmark(tmp_path / "data"))


def edit(path, line, **fields):
    lines = path.read_text().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | fields)
    path.write_text("\n".join(lines) + "\n")


def table(benchmark, path, scores=None, positive_score=0.9, **lists):
    """All other candidates for every training query, best first in the order of the pool, or those of ``lists``.

    Cosines fall from 0.8 to 0.1; ``scores`` are the teacher's.
    """
    pool = list(benchmark.union_pool("train"))
    found = {}
    for query in benchmark.train_queries():
        dids = lists.get(query.qid, tuple(did for did in pool if did not in query.positives))
        found[query.qid] = MinedList(
            query.qid,
            query.positives,
            np.full(len(query.positives), positive_score, dtype=np.float32),
            dids,
            np.linspace(0.8, 0.1, len(dids), dtype=np.float32),
            positive_teacher_scores=scores and np.array([scores[did] for did in query.positives], dtype=np.float32),
            teacher_scores=scores and np.array([scores[did] for did in dids], dtype=np.float32),
        )
    return NegativeTable.write(path, found.values(), {})


def every(source, seed=0, epoch=0):
    return source.rows(range(len(source)), seed, epoch)


def shown(messages):
    """What a chat shows: the names of its pictures and its texts."""
    parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
    return [part["text"] if part["type"] == "text" else part["image"].rpartition("/")[2] for part in parts]


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# M-BEIR


def test_a_row_of_mbeir_is_a_query_with_its_instruction_and_a_positive(root):
    source = MBeirRows(MBeir(root))
    assert len(source) == 18 and source.columns == ("anchor", "positive") and source.label_width == 3
    assert list(dict.fromkeys(source.groups)) == ["1 task 0", "1 task 3", "2 task 7"]
    rows = every(source)
    red, text, changed = rows[0], rows[6], rows[12]
    system, user = red["anchor"]
    assert system["content"][0]["text"] in ("Find its picture.", "Show it.")
    assert user == chat("red.")[0]
    assert shown(red["positive"]) in (["plain_red.png"], ["dark_red.png"])
    assert text["anchor"][1] == chat({"image": str(root / "mbeir_images/dark_red.png")})[0]
    assert text["positive"] == chat("A red square.")
    assert shown(changed["anchor"]) == ["plain_red.png", "darker."] and shown(changed["positive"]) == ["dark_red.png"]
    assert source.origin(12) == f"{root / QUERIES}:13, query '2:0'"


def test_a_label_numbers_the_query_its_positive_negatives_and_other_positives(root, tmp_path):
    benchmark = MBeir(root)
    pool = benchmark.union_pool("train")
    ids = {did: int(digest) >> 1 for did, digest in zip(pool, pool.digests, strict=True)}
    tables = {"union": table(benchmark, tmp_path / "t.parquet")}
    source = MBeirRows(benchmark, tables=tables, choice=Choice({"union": Strategy("top", 2)}))
    assert source.columns == ("anchor", "positive", "negative_1", "negative_2") and source.label_width == 5
    rows = every(source)
    for number, row in enumerate(rows):
        assert row["label"][0] == number and len(row["label"]) == 5
    assert rows[1]["label"][1:] in (  # green; red's first two are its negatives
        [ids["1:1"], ids["1:0"], ids["1:10"], ids["1:11"]],
        [ids["1:11"], ids["1:0"], ids["1:10"], ids["1:1"]],
    )
    assert [shown(rows[1][f"negative_{at}"]) for at in (1, 2)] == [["plain_red.png"], ["dark_red.png"]]
    assert rows[7]["label"][1:] == [ids["1:21"], ids["1:0"], ids["1:10"], PADDING_ID]


def test_candidates_of_equal_content_and_rows_of_one_query_have_equal_ids(root):
    edit(root / POOL, 5, txt="a red square")  # the text of green
    queries = root / QUERIES
    queries.write_text(queries.read_text() + queries.read_text().splitlines(keepends=True)[2])
    rows = every(MBeirRows(MBeir(root)))
    assert rows[6]["label"][1] == rows[7]["label"][1] != rows[8]["label"][1]
    assert [row["label"][0] for row in rows] == [*range(18), 2]


def test_an_epoch_draws_anew_and_the_same_epoch_the_same(root, tmp_path):
    tables = {"union": table(MBeir(root), tmp_path / "t.parquet")}
    choice = Choice({"union": Strategy("window", 2, (1, 9))})
    source = MBeirRows(MBeir(root), tables=tables, choice=choice)
    assert every(source) == every(source) == every(MBeirRows(MBeir(root), tables=tables, choice=choice))
    assert [source.rows([number], 0, 0)[0] for number in range(18)] == every(source)
    assert every(source, epoch=1) != every(source) != every(source, seed=1)
    drawn = [every(source, epoch=epoch)[0] for epoch in range(20)]
    assert {shown(row["positive"])[0] for row in drawn} == {"plain_red.png", "dark_red.png"}
    assert {row["anchor"][0]["content"][0]["text"] for row in drawn} == {"Find its picture.", "Show it."}
    assert len({row["label"][2] for row in drawn}) > 4


def test_a_row_does_not_depend_on_the_rows_after_it_and_repeated_ones_draw_for_themselves(root):
    whole = every(MBeirRows(MBeir(root)))
    path = root / QUERIES
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:9]))
    assert every(MBeirRows(MBeir(root))) == whole[:9]
    path.write_text(20 * lines[0])
    rows = every(MBeirRows(MBeir(root)))
    assert len({row["label"][1] for row in rows}) == 2 and {row["label"][0] for row in rows} == {0}


def test_rows_of_some_groups_only(root):
    source = MBeirRows(MBeir(root), groups=["2 task 7"])
    assert len(source) == 6 and set(source.groups) == {"2 task 7"} and source.origin(0).endswith(":13, query '2:0'")
    with pytest.raises(ValueError, match=r"no queries of \['2 task 8'\]; there are those of \['1 task 0'"):
        MBeirRows(MBeir(root), groups=["2 task 8"])


def test_negatives_come_from_each_pool_by_its_strategy_and_no_list_twice(root, tmp_path):
    benchmark = MBeir(root)
    tables = {name: table(benchmark, tmp_path / f"{name}.parquet") for name in ("local", "union")}
    choice = Choice(
        {"local": Strategy("top", 2), "union": Strategy("top", 3)}, tasks={"1 task 3": {"strategy": "random"}}
    )
    rows = every(MBeirRows(benchmark, tables=tables, choice=choice))
    order = [
        shown(rows[0][f"negative_{at}"])[0] for at in range(1, 6)
    ]  # those of green and the text of red stand first
    assert order == ["A red square.", "plain_green.png", "dark_green.png", "A green square.", "plain_blue.png"]
    for row in rows[:6] + rows[12:]:
        assert len(set(row["label"][1:7])) == 6
    assert len({tuple(row["label"][2:7]) for row in rows[6:12]}) == 6  # at random
    with pytest.raises(ValueError, match=r"Negatives are chosen from \['union'\]; there are tables of \['local'\]"):
        MBeirRows(benchmark, tables={"local": tables["local"]}, choice=choice)
    with pytest.raises(ValueError, match=r"Negatives are chosen for \['3 task 3'\], but there are only \['1 task 0'"):
        MBeirRows(benchmark, tables=tables, choice=Choice(choice.strategies, tasks={"3 task 3": {}}))
    with pytest.raises(ValueError, match="window"):
        Choice(choice.strategies, tasks={"1 task 3": {"strategy": "window"}})


def test_queries_that_a_table_lacks_are_no_rows(root, tmp_path):
    benchmark = MBeir(root)
    whole = table(benchmark, tmp_path / "t.parquet")
    part = NegativeTable.write(tmp_path / "part.parquet", [whole["1:3"], whole["2:5"]], {})
    source = MBeirRows(benchmark, tables={"union": part}, choice=Choice({"union": Strategy("top", 1)}))
    assert [query.qid for query in source.queries] == ["1:3", "2:5"] and len(every(source)) == 2


def test_new_tables_are_used_from_then_on(root, tmp_path):
    benchmark = MBeir(root)
    first = table(benchmark, tmp_path / "first.parquet")
    second = table(benchmark, tmp_path / "second.parquet", **{"1:2": ("1:5", "1:4"), "1:3": ("1:5",)})
    source = MBeirRows(benchmark, tables={"union": first}, choice=Choice({"union": Strategy("top", 2)}))
    before = every(source)
    with pytest.raises(ValueError, match=r"jsonl: '1:3': 2 negatives.* 1 \+ 0 found"):
        source.use({"union": second})
    quarantine = Quarantine(tmp_path / "bad.jsonl")
    source = MBeirRows(
        benchmark, tables={"union": first}, choice=Choice({"union": Strategy("top", 2)}), quarantine=quarantine
    )
    source.use({"union": second, "local": second})
    after = every(source)
    assert [shown(after[2][f"negative_{at}"])[0] for at in (1, 2)] == ["plain_cyan.png", "plain_purple.png"]
    assert after[3] == before[3]  # its new list is too short: it keeps the first


def test_a_table_of_another_pool_and_a_missing_prompt_are_no_matter_of_rows(root, tmp_path):
    other = table(MBeir(root), tmp_path / "t.parquet", **{"1:3": ("9:9", "1:4")})
    with pytest.raises(ValueError, match="mined from another pool"):
        MBeirRows(
            MBeir(root),
            tables={"union": other},
            choice=Choice({"union": Strategy("top", 1)}),
            quarantine=Quarantine(tmp_path / "bad.jsonl"),
        )
    path = root / "instructions/query_instructions.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="needs prompts for '2, image,text, image'"):
        MBeirRows(MBeir(root), quarantine=Quarantine(tmp_path / "bad.jsonl"))


# Distillation


def teacher_scores(root):
    return {did: round(0.5 + 0.05 * at, 2) for at, did in enumerate(MBeir(root).union_pool("train"))}


def test_a_teachers_list_holds_what_was_retrieved_sorted_by_its_scores(root, tmp_path):
    benchmark, scores = MBeir(root), teacher_scores(root)  # they rise in the order of the pool, in which cosines fall
    source = TeacherLists(benchmark, table(benchmark, tmp_path / "t.parquet", scores), top=3)
    assert source.columns == ("anchor", "candidate_1", "candidate_2", "candidate_3") and source.label_width == 0
    rows = every(source)
    names = [shown(rows[0][f"candidate_{at}"])[0] for at in (1, 2, 3)]
    assert names == ["A red square.", "dark_red.png", "plain_red.png"]  # both positives and the first of the others
    assert np.allclose(rows[0]["label"], [[scores["1:20"], scores["1:10"], scores["1:0"]], [0, 1, 1]])
    assert np.allclose(rows[11]["label"][1], [1, 0, 0])  # cyan's caption, which the teacher likes best, and two others
    assert every(source) == every(source) != every(source, epoch=1)


def test_equal_scores_are_ordered_by_did_and_a_positive_that_was_not_retrieved_comes_in_only_if_kept(root, tmp_path):
    benchmark = MBeir(root)
    scores = dict.fromkeys(benchmark.union_pool("train"), 0.5) | {"1:0": 0.9, "1:10": 0.7}
    scored = table(benchmark, tmp_path / "t.parquet", scores, positive_score=0.05)
    kept = every(TeacherLists(benchmark, scored, top=4, keep_positive=True))[0]
    left = every(TeacherLists(benchmark, scored, top=4))[0]
    retrieved = ["1:20", "1:1", "1:11", "1:21"]  # the first of the pool, but for red's two pictures
    assert retrieved == [did for did in benchmark.union_pool("train") if did not in ("1:0", "1:10")][:4]
    pool, names = benchmark.union_pool("train"), [f"candidate_{at}" for at in (1, 2, 3, 4)]
    for row, dids in ((left, sorted(retrieved, reverse=True)), (kept, ["1:0", "1:21", "1:20", "1:11"])):
        assert [shown(row[name])[0] for name in names] == [pool[did].text or pool[did].image.name for did in dids]
    assert np.allclose(left["label"], [[0.5] * 4, [0] * 4])
    assert np.allclose(kept["label"], [[0.9, 0.5, 0.5, 0.5], [1, 0, 0, 0]])


def test_a_positive_stands_among_those_retrieved_by_its_cosine(root, tmp_path):
    benchmark, scores = MBeir(root), teacher_scores(root)
    scored = table(benchmark, tmp_path / "t.parquet", scores, positive_score=0.79)  # behind the first of the others
    rows = every(TeacherLists(benchmark, scored, top=1))
    assert shown(rows[0]["candidate_1"]) == ["A red square."]
    assert np.allclose(rows[0]["label"], [[scores["1:20"]], [0]])


def test_lists_without_enough_scores_are_told(root, tmp_path):
    benchmark = MBeir(root)
    with pytest.raises(ValueError, match=r"no teacher scores\. Score the table first"):
        TeacherLists(benchmark, table(benchmark, tmp_path / "t.parquet"), top=3)
    scored = table(benchmark, tmp_path / "s.parquet", teacher_scores(root))
    with pytest.raises(ValueError, match="jsonl:1: '1:0': 19 candidates are asked for and 18 have teacher scores"):
        TeacherLists(benchmark, scored, top=19)


# Pairs


def nli(tmp_path, text):
    path = tmp_path / "nli.csv"
    path.write_text(text)
    return path


def content_id(kind, content):
    return int.from_bytes(blake2b(f"{kind}\0{content}".encode(), digest_size=8).digest()) >> 1


def test_rows_of_nli_are_pairs_or_triplets(tmp_path):
    path = nli(
        tmp_path, 'sent0,sent1,hard_neg\na dog,"an animal, alive",a stone\na cat,"two\nlines",a dog\na dog,a pet,x\n'
    )
    pairs = Pairs.nli(path)
    assert (pairs.name, pairs.columns, pairs.label_width, pairs.groups) == (
        "nli",
        ("anchor", "positive"),
        2,
        3 * ["nli"],
    )
    rows = every(pairs)
    assert rows[0] == {
        "anchor": chat("a dog"),
        "positive": chat("an animal, alive"),
        "label": [0, content_id("text", "an animal, alive")],
    }
    assert shown(rows[1]["positive"]) == ["two\nlines"]
    assert [row["label"][0] for row in rows] == [0, 1, 0]  # the first and the last ask the same
    assert [pairs.origin(number) for number in range(3)] == [f"{path}:{line}" for line in (2, 4, 5)]
    triplets = Pairs.nli(path, negatives=True)
    assert triplets.columns == ("anchor", "positive", "negative_1") and triplets.label_width == 3
    assert every(triplets)[1]["negative_1"] == chat("a dog")
    assert every(triplets)[1]["label"][2] == content_id("text", "a dog")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "folder", "embedded"])
def test_captions_are_read_from_files_and_folders(tmp_path, kind):
    names, texts = ["a.png", "b.png", "a.png"], ["a bench", "Two dogs!", "red wall"]
    for seed, name in enumerate(sorted(set(names))):
        picture(8, 8, seed=seed).save(tmp_path / name)
    path, images, decoded = tmp_path / f"set.{kind}", None, [str(tmp_path / name) for name in names]
    if kind == "jsonl":
        path.write_text(
            "".join(json.dumps({"cap": text, "img": name}) + "\n" for text, name in zip(texts, names, strict=True))
        )
    elif kind == "csv":
        path.write_text("img,cap\n" + "".join(f"{name},{text}\n" for text, name in zip(texts, names, strict=True)))
    elif kind == "parquet":
        Dataset.from_dict({"img": names, "cap": texts}).to_parquet(str(path))
    else:
        path = tmp_path / "set"
        if kind == "embedded":
            table = Dataset.from_dict({"img": [str(tmp_path / name) for name in names], "cap": texts})
            table.cast_column("img", Image()).save_to_disk(str(path))
        else:
            Dataset.from_dict({"img": names, "cap": texts}).save_to_disk(str(path))
            images = tmp_path
    source = Pairs.captions(path, text="cap", image="img", images=images, instruction="Find it.")
    rows = every(source)
    assert set(source.groups) == {"set"} and source.columns == ("anchor", "positive")
    assert [shown(row["anchor"])[0] for row in rows] == ["A bench.", "Two dogs!", "Red wall."]
    assert rows[0]["anchor"][0] == chat("", "Find it.")[0] and len(rows[0]["positive"]) == 1
    found = [row["positive"][0]["content"][0]["image"] for row in rows]
    if kind == "embedded":
        assert [image["bytes"] for image in found] == [(tmp_path / name).read_bytes() for name in names]
    else:
        assert found == decoded
    assert rows[0]["label"][1] == rows[2]["label"][1] != rows[1]["label"][1]
    turned = every(Pairs.captions(path, text="cap", image="img", images=images, direction="image-to-text"))
    assert turned[1]["anchor"] == rows[1]["positive"] and turned[1]["positive"] == chat("Two dogs!")
    assert [row["label"][0] for row in turned] == [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.csv", "sent0,sent1\n", ValueError, "a.csv has no row"),
        ("a.csv", "", ValueError, "a.csv has no row"),
        ("a.csv", "sent0,sent2\na,b\n", ValueError, "a.csv has no column 'sent1'; it has 'sent0', 'sent2'."),
        ("a.csv", "sent0,sent1\na,b\nc\n", ValueError, "a.csv:3: '': it has no 'sent1'"),
        ("a.csv", "sent0,sent1\na,b\nc, \n", ValueError, "a.csv:3: '': it has no 'sent1'"),
        ("a.csv", "sent0,sent1\na,b,c\n", ValueError, "a.csv:2: '': it has more fields than the header"),
        ("a.csv", b"sent0,sent1\na,\xff\n", ValueError, "a.csv: after line 0: .*UTF-8"),
        ("a.jsonl", '{"text": "a", "image": "b"}\n{"text": "a', ValueError, "a.jsonl:2: '': not JSON .*cut short"),
        ("a.jsonl", '{"txt": "a", "image": "b"}\n', ValueError, "a.jsonl has no column 'text'; it has 'txt', 'image'"),
        (
            "a.jsonl",
            '{"text": "a", "image": "b"}\n{"text": 3, "image": "b"}',
            ValueError,
            "jsonl:2: '': it has no 'text'",
        ),
        ("a.jsonl", "[1]\n", ValueError, "a.jsonl:1: '': the record is not an object"),
        ("b.jsonl", None, FileNotFoundError, "b.jsonl does not exist; check the path"),
        ("b.csv", None, FileNotFoundError, "b.csv does not exist; check the path"),
        ("b.parquet", None, ValueError, "b.parquet is no jsonl, csv or Parquet file"),
        ("a.parquet", "no parquet", ValueError, "a.parquet is no jsonl, csv or Parquet file"),
    ],
)
def test_files_that_cannot_be_used_are_named(tmp_path, name, content, error, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error, match=message):
        Pairs.nli(path) if name.endswith(".csv") else Pairs.captions(path)


def test_sentences_in_another_kind_of_file_are_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("sent0\tsent1\na\tb\n")
    with pytest.raises(ValueError, match=r"a\.tsv is named \.tsv; give one of \.csv, \.jsonl\."):
        Pairs.nli(tmp_path / "a.tsv")


def test_a_misspelt_column_of_a_saved_table_is_named(tmp_path):
    Dataset.from_dict({"img": ["a"], "text": ["b"]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match="set has no column 'image'; it has 'img', 'text'"):
        Pairs.captions(tmp_path / "set")
    with pytest.raises(ValueError, match=r"no/such-data is no jsonl.*no data set that the Hub gives"):
        Pairs.captions("no/such-data")


# Quarantine


def spoil(root):
    """Give the training queries one bad row of each kind; returns their qids by reason."""
    edit(root / QUERIES, 0, pos_cand_list=[])
    edit(root / QUERIES, 1, pos_cand_list=["1:1", "1:99"])
    edit(root / QUERIES, 15, query_img_path="mbeir_images/none.png")
    (root / "mbeir_images/broken.png").write_bytes((root / "mbeir_images/dark_blue.png").read_bytes()[:60])
    edit(root / POOL, 10, img_path="mbeir_images/broken.png")  # 1:13, dark yellow
    lines = (root / QUERIES).read_text().splitlines(keepends=True)
    lines[4] = lines[4][:40] + "\n"
    (root / QUERIES).write_text("".join(lines))


def test_without_a_file_for_it_the_first_bad_row_ends_it(root):
    spoil(root)
    with pytest.raises(ValueError, match=r"train.jsonl:5: .*not JSON"):
        MBeirRows(MBeir(root))
    edit_lines = (root / QUERIES).read_text().splitlines(keepends=True)
    del edit_lines[4]
    (root / QUERIES).write_text("".join(edit_lines))
    with pytest.raises(ValueError, match=r"train.jsonl:1: '1:0': it names no positive"):
        MBeirRows(MBeir(root))
    edit(root / QUERIES, 0, pos_cand_list=["1:0"])
    with pytest.raises(ValueError, match=r"train.jsonl:2: '1:1': its positive '1:99' is not among the 18 candidates"):
        MBeirRows(MBeir(root))
    edit(root / QUERIES, 1, pos_cand_list=["1:1"])
    assert len(MBeirRows(MBeir(root))) == 17  # pictures are opened as they are needed


def test_bad_rows_are_left_out_and_listed_and_none_is_lost(root, tmp_path, caplog):
    spoil(root)
    path = tmp_path / "run" / "quarantine.jsonl"
    source = MBeirRows(MBeir(root), quarantine=Quarantine(path))
    entries = read(path)
    queries = [entry for entry in entries if entry["file"].endswith("train.jsonl")]
    assert [(entry["line"], entry["id"]) for entry in queries] == [
        (1, "1:0"), (2, "1:1"), (4, "1:3"), (5, ""), (16, "2:3")
    ]  # fmt: skip
    words = ["names no positive", "'1:99' is not among", "'1:13': .*damaged", "not JSON", "none.png' does not exist"]
    assert all(re.search(word, entry["reason"]) for word, entry in zip(words, queries, strict=True))
    pool = [entry for entry in entries if entry not in queries]
    assert [(entry["file"], entry["line"], entry["id"]) for entry in pool] == [(str(root / POOL), 11, "1:13")]
    assert len(source) + len(queries) == 18
    kept = [query.qid for query in source.queries]
    assert kept == [f"1:{at}" for at in (2, 5, *range(20, 26))] + [f"2:{at}" for at in (0, 1, 2, 4, 5)]
    assert len(every(source)) == 13 and all(entry["id"] in caplog.text for entry in entries)


def test_rows_of_one_qid_that_ask_different_things_are_found_before_training(root, tmp_path):
    edit(root / QUERIES, 2, qid="1:1", query_txt="green", pos_cand_list=["1:11"])  # the same with another positive
    edit(root / QUERIES, 3, qid="1:1")
    told = r"train.jsonl:2: '1:1': a later row of this qid asks otherwise, 'yellow.' \(task 0\)"
    with pytest.raises(ValueError, match=told):
        MBeirRows(MBeir(root))
    source = MBeirRows(MBeir(root), quarantine=Quarantine(tmp_path / "bad.jsonl"))
    assert [(entry["line"], entry["id"]) for entry in read(tmp_path / "bad.jsonl")] == [(2, "1:1")]
    assert [query.text for query in source.queries if query.qid == "1:1"] == ["green."] * 2 and len(source) == 17


def test_quarantine_again_gives_the_same_file_and_grows_with_other_sources(root, tmp_path):
    spoil(root)
    path = tmp_path / "quarantine.jsonl"
    MBeirRows(MBeir(root), quarantine=Quarantine(path))
    first = path.read_bytes()
    MBeirRows(MBeir(root), quarantine=Quarantine(path))
    assert path.read_bytes() == first
    csv = nli(tmp_path, "sent0,sent1\na,b\nc\nd,e\n")
    assert len(Pairs.nli(csv, quarantine=Quarantine(path))) == 2
    assert len(read(path)) == len(first.splitlines()) + 1 and set(first.splitlines()) < set(
        path.read_bytes().splitlines()
    )
    assert not list(tmp_path.glob("*.partial"))


def test_a_candidate_that_does_not_open_is_nobodys_negative(root, tmp_path):
    benchmark = MBeir(root)
    tables = {"union": table(benchmark, tmp_path / "t.parquet")}
    spoil_picture = root / "mbeir_images/dark_yellow.png"
    spoil_picture.write_bytes(spoil_picture.read_bytes()[:60])  # also 1:13, and the query of 1:23
    for strategy in (Strategy("top", 14), Strategy("random", 14)):
        source = MBeirRows(
            MBeir(root),
            tables=tables,
            choice=Choice({"union": strategy}),
            quarantine=Quarantine(tmp_path / "bad.jsonl"),
        )
        assert {query.qid for query in source.queries} == {query.qid for query in benchmark.train_queries()} - {
            "1:3",
            "1:23",
            "2:3",
        }
        names = {shown(row[f"negative_{at}"])[0] for row in every(source) for at in range(1, 15)}
        assert "dark_yellow.png" not in names and "plain_yellow.png" in names


def test_rows_with_too_few_negatives_are_found_before_training(root, tmp_path):
    short = {"union": table(MBeir(root), tmp_path / "t.parquet", **{"1:2": ("1:5",), "2:1": ()})}
    choice = Choice({"union": Strategy("top", 2)}, Filters(max_score=0.79))
    with pytest.raises(ValueError, match=r"train.jsonl:3: '1:2': 2 negatives.*0 \+ 0 found.*max_score removes 1"):
        MBeirRows(MBeir(root), tables=short, choice=choice)
    source = MBeirRows(MBeir(root), tables=short, choice=choice, quarantine=Quarantine(tmp_path / "bad.jsonl"))
    assert [(entry["line"], entry["id"]) for entry in read(tmp_path / "bad.jsonl")] == [(3, "1:2"), (14, "2:1")]
    assert len(source) == 16


def test_captions_whose_picture_does_not_open_are_left_out(tmp_path):
    picture(8, 8, seed=0).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    picture(603, 3, seed=0).save(tmp_path / "d.png")
    lines = [{"text": "a", "image": name} for name in ("a.png", "b.png", "c.png", "a.png")]
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"text":')
    source = Pairs.captions(path, quarantine=Quarantine(tmp_path / "bad.jsonl"))
    assert [source.origin(number) for number in range(2)] == [f"{path}:1", f"{path}:4"] and len(source) == 2
    reasons = {entry["line"]: entry["reason"] for entry in read(tmp_path / "bad.jsonl")}
    assert "not a picture" in reasons[2] and "does not exist" in reasons[3] and "not JSON" in reasons[5]
    only_bad = tmp_path / "bad-set.jsonl"
    only_bad.write_text('{"text": "a", "image": "c.png"}\n{"text": "a", "image": "d.png"}\n')
    with pytest.raises(ValueError, match=r"bad-set.jsonl has no row that can be trained on"):
        Pairs.captions(only_bad, quarantine=Quarantine(tmp_path / "bad.jsonl"))
    rows = TrainingRows([Pairs.captions(only_bad)], seed=0)
    rows.training = True
    with pytest.raises(ValueError, match=r"bad-set.jsonl:2: .*d.png' is 603 × 3 pixels; processors refuse"):
        rows.dataset[1]


# Memory


class Many(MBeir):
    """The benchmark of colours with as many training queries as asked for."""

    def __init__(self, root, count):
        super().__init__(root)
        draw = random.Random(0)
        self.many = [Query(f"1:{at}", "red.", None, "text", (f"1:{draw.randrange(6)}",), 0) for at in range(count)]

    def train_queries(self):
        return self.many


def test_rows_cost_little_beside_their_queries(root):
    benchmark = Many(root, 200_000)
    benchmark.union_pool("train")
    before = psutil.Process().memory_info().rss
    rows = TrainingRows([MBeirRows(benchmark)], seed=0)
    taken = psutil.Process().memory_info().rss - before
    assert len(rows) == 200_000 and taken < 60e6, taken
