"""An embedder through mteb: the same hit rates as through our evaluator, its other kinds of tasks, its files."""

import json
import shutil
import subprocess
import sys

import mteb
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Image
from mteb.abstasks import AbsTaskClassification, AbsTaskPairClassification, AbsTaskRetrieval
from mteb.abstasks.image import AbsTaskImageTextPairClassification
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.cache import ResultCache
from mteb.models import EncoderProtocol
from mteb.results import TaskResult as MtebResult
from mteb.types import PromptType
from PIL import Image as Picture

from umarvel_hf.data import CANDIDATE_MODALITY, TASK_TYPES, MBeir
from umarvel_hf.emoji import benchmark_dir, model_dir
from umarvel_hf.encoding import encode, load
from umarvel_hf.evaluation.benchmark import evaluate_benchmark
from umarvel_hf.evaluation.mteb import MtebEncoder
from umarvel_hf.evaluation.overview import read_results, sections
from umarvel_hf.evaluation.results import MODEL, MTEB_NAMES

DATASET, QUERIES, POOL = "emojiseen", 25, 120  # mteb keeps five decimals: of 25 queries each hit is 0.04
# For every pair of modalities, a task of mteb that asks for it.
NAMES = {
    "text → image": "MSCOCOT2IRetrieval",
    "text → text": "WebQAT2TRetrieval",
    "text → image+text": "EDIST2ITRetrieval",
    "image → text": "MSCOCOI2TRetrieval",
    "image → image": "NIGHTSI2IRetrieval",
    "image+text → text": "OVENIT2TRetrieval",
    "image+text → image": "CIRRIT2IRetrieval",
    "image+text → image+text": "OVENIT2ITRetrieval",
}


def metadata_of(name, kind, category, modalities, score, prompt=None):
    return TaskMetadata(
        name=name, description="small", dataset={"path": "local", "revision": "1"}, type=kind, category=category,
        modalities=modalities, eval_splits=["test"], eval_langs=["eng-Latn"], main_score=score,
        prompt=prompt and {"query": prompt},
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoder():
    return MtebEncoder(model_dir(), name="ours/emoji")


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The embedded benchmark's tasks of one data set: some queries, and a part of every pool."""
    whole, root = benchmark_dir(), tmp_path_factory.mktemp("cut")
    for folder in ("query/test", "cand_pool/local", "qrels/test"):
        (root / folder).mkdir(parents=True)
    for path in whole.iterdir():
        if path.name not in ("query", "cand_pool", "qrels"):
            (root / path.name).symlink_to(path)
    for task_id in TASK_TYPES:
        name = f"mbeir_{DATASET}_task{task_id}"
        if not (whole / f"query/test/{name}_test.jsonl").is_file():
            continue
        asked = lines(whole / f"query/test/{name}_test.jsonl")[:QUERIES]
        qids = {json.loads(line)["qid"] for line in asked}
        judged = [line for line in lines(whole / f"qrels/test/{name}_test_qrels.txt") if line.split()[0] in qids]
        right = {line.split()[2] for line in judged}
        pool = lines(whole / f"cand_pool/local/{name}_cand_pool.jsonl")
        kept = [line for at, line in enumerate(pool) if at < POOL or json.loads(line)["did"] in right]
        (root / f"query/test/{name}_test.jsonl").write_text("\n".join(asked))
        (root / f"qrels/test/{name}_test_qrels.txt").write_text("\n".join(judged))
        (root / f"cand_pool/local/{name}_cand_pool.jsonl").write_text("\n".join(kept))
    return root


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def records(root, path, names):
    """Rows of mteb from the raw lines of a file: id, and whichever of text and image it has."""
    rows = []
    for line in lines(path):
        record = json.loads(line)
        own, text, image = (record[name] for name in names)
        rows.append({"id": own} | ({"text": text} if text else {}) | ({"image": str(root / image)} if image else {}))
    table = Dataset.from_list(rows)
    return table.cast_column("image", Image()) if "image" in table.column_names else table


def category(words):
    """As mteb writes it: ``it2t`` for ``image+text → text``."""
    return "2".join("".join(kind[0] for kind in side.split("+")) for side in words.split(" → "))


def as_mteb(root, task):
    """A task of a folder in M-BEIR's layout, unchanged, as one of mteb's."""
    benchmark, name = MBeir(root), f"mbeir_{task.name}"
    query = benchmark.queries(task, "test")[0]
    prompt = benchmark.prompts(query, CANDIDATE_MODALITY[task.task_id])[0].rstrip(".")

    class Local(AbsTaskRetrieval):
        metadata = metadata_of(
            NAMES[task.type], "Any2AnyRetrieval", category(task.type), ["text", "image"], "ndcg_at_10", prompt
        )

        def load_data(self, num_proc=None, **_):
            queries = records(root, root / f"query/test/{name}_test.jsonl", ("qid", "query_txt", "query_img_path"))
            corpus = records(root, root / f"cand_pool/local/{name}_cand_pool.jsonl", ("did", "txt", "img_path"))
            right = benchmark.qrels(task, "test")
            self.dataset = {
                "default": {"test": {"queries": queries, "corpus": corpus, "relevant_docs": right, "top_ranked": None}}
            }
            self.data_loaded = True

    return Local()


def run(encoder, tasks, folder):
    return mteb.evaluate(encoder, tasks, cache=ResultCache(folder), show_progress_bar=False, num_proc=1)


def test_hit_rates_through_mteb_are_those_of_our_evaluator(encoder, cut, tmp_path):
    benchmark = MBeir(cut)
    tasks = benchmark.tasks("test")
    assert [task.type for task in tasks] == list(NAMES)
    ours = evaluate_benchmark(load(model_dir()), benchmark, pools=["local"], baselines=False)
    theirs = run(encoder, [as_mteb(cut, task) for task in tasks], tmp_path)
    for own, found in zip(ours.tasks, theirs.task_results, strict=True):
        (scores,) = found.scores["test"]
        for k in (1, 5, 10):
            assert scores[f"hit_rate_at_{k}"] == pytest.approx(own.rate(MODEL, "local", f"hit@{k}"), abs=1e-6), own.name
    assert len({task.rate(MODEL, "local") for task in ours.tasks}) > 3  # there is something to differ on


def test_result_files_are_those_of_mteb_and_stand_on_our_page(encoder, cut, tmp_path):
    task = MBeir(cut).tasks("test")[0]
    run(encoder, [as_mteb(cut, task)], tmp_path)
    (file,) = tmp_path.rglob("MSCOCOT2IRetrieval.json")
    saved = MtebResult.from_disk(file)
    assert saved.task_name == "MSCOCOT2IRetrieval" and file.parent.name == encoder.mteb_model_meta.revision
    for given in (tmp_path, file):
        (section,) = sections(read_results([given]))
        assert section.title == "mteb" and section.columns[0].metric == "hit_rate_at_5"
        ((row, value),) = [(row, row.scores["MSCOCOT2IRetrieval"]) for row in section.measured]
        assert row.model == "ours/emoji"
        assert value == pytest.approx(100 * saved.scores["test"][0]["hit_rate_at_5"])


def squares(count):
    return [Picture.new("RGB", (32, 32), (250, 40, 40) if at % 2 else (40, 40, 250)) for at in range(count)]


class Colours(AbsTaskClassification):
    metadata = metadata_of("LocalColours", "ImageClassification", "i2c", ["image"], "accuracy")
    input_column_name = "image"
    samples_per_label = 4

    def load_data(self, num_proc=None, **_):
        rows = Dataset.from_dict({"image": squares(12), "label": [at % 2 for at in range(12)]})
        rows = rows.cast_column("image", Image())
        self.dataset = DatasetDict({"train": rows, "test": rows})
        self.data_loaded = True


class Words(AbsTaskClassification):
    metadata = metadata_of("LocalWords", "Classification", "t2c", ["text"], "accuracy")
    samples_per_label = 4

    def load_data(self, num_proc=None, **_):
        texts = [f"{'red heart' if at % 2 else 'grey cat'} {'!' * (at // 2)}" for at in range(12)]
        rows = Dataset.from_dict({"text": texts, "label": [at % 2 for at in range(12)]})
        self.dataset = DatasetDict({"train": rows, "test": rows})
        self.data_loaded = True


class Pairs(AbsTaskPairClassification):
    metadata = metadata_of("LocalPairs", "PairClassification", "t2t", ["text"], "max_ap")

    def load_data(self, num_proc=None, **_):
        first = ["a red heart", "a red heart", "a grey cat", "a grey cat"]
        second = ["red heart", "grey cat", "grey cat", "red heart"]
        rows = Dataset.from_dict({"sentence1": first, "sentence2": second, "labels": [1, 0, 1, 0]})
        self.dataset = DatasetDict({"test": rows})
        self.data_loaded = True


class PicturesAndWords(AbsTaskImageTextPairClassification):
    metadata = metadata_of("LocalPicturesAndWords", "Compositionality", "i2t", ["text", "image"], "text_acc")
    images_column_names = "image"
    texts_column_names = ["right", "wrong"]

    def load_data(self, num_proc=None, **_):
        rows = {"image": squares(2), "right": ["blue square", "red square"], "wrong": ["red square", "blue square"]}
        self.dataset = DatasetDict({"test": Dataset.from_dict(rows).cast_column("image", Image())})
        self.data_loaded = True


@pytest.mark.parametrize("task", [Colours, Words, Pairs, PicturesAndWords])
def test_other_kinds_of_tasks_run(encoder, tmp_path, task):
    (found,) = run(encoder, [task()], tmp_path).task_results
    (scores,) = found.scores["test"]
    assert 0 <= scores["main_score"] <= 1
    if task in (Colours, Words, Pairs):
        assert scores["main_score"] == 1


def test_the_model_says_all_that_mteb_asks(encoder):
    meta = encoder.mteb_model_meta
    assert isinstance(encoder, EncoderProtocol)
    assert meta.training_datasets == set(MTEB_NAMES)
    assert (meta.name, meta.modalities) == ("ours/emoji", ["text", "image"])
    weights = list(encoder.model.parameters())
    assert meta.n_parameters == sum(one.numel() for one in weights)
    assert meta.memory_usage_mb == pytest.approx(4 * meta.n_parameters / 2**20)
    assert meta.embed_dim == encoder.model.get_embedding_dimension()
    missing = {name for name, value in meta.to_dict().items() if value is None}
    # Nothing is known of these for this folder; the rest concerns other kinds of models.
    assert missing == {
        "release_date", "public_training_code", "license", "reference", "adapted_from", "superseded_by", "citation",
        "contacts", "experiment_kwargs", "output_dtypes", "extra_requirements_groups", "n_active_parameters_override",
    }  # fmt: skip


def test_every_task_of_mteb_from_mbeir_is_known():
    known = {task.metadata.name: task.metadata for task in mteb.get_tasks(task_types=["Any2AnyRetrieval"])}
    for name, task in MTEB_NAMES.items():
        assert known[name].category == category(task.type), name
        assert task.dataset in name.lower()


def test_copies_of_other_weights_have_other_revisions(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "same")
    (tmp_path / "same/README.md").write_text("---\nlicense: mit\nbase_model: some/base\n---\n")
    same, other = (MtebEncoder(folder).mteb_model_meta for folder in (tmp_path / "same", model_dir()))
    assert same.revision == MtebEncoder(checkpoint).mteb_model_meta.revision != other.revision
    assert (same.name, same.license, same.adapted_from) == ("local/same", "mit", "some/base")


def test_without_mteb_the_error_says_what_to_install():
    code = "import sys; sys.modules['mteb'] = None; import umarvel_hf.evaluation.mteb"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("mteb is not installed. Install: pip install 'umarvel_hf[mteb]'.\n")


class Loader(list):
    """Batches of a loader."""


def test_documents_get_no_instruction_and_texts_of_mbeir_are_normalised(encoder):
    def embedded(name, prompt_type, text):
        told = metadata_of(name, "Any2AnyRetrieval", "t2t", ["text"], "ndcg_at_10", "find it")
        return encoder.encode(
            Loader([{"text": [text]}]),
            task_metadata=told,
            hf_split="test",
            hf_subset="default",
            prompt_type=prompt_type,
        )

    query, document = PromptType.query, PromptType.document
    model = encoder.model
    np.testing.assert_array_equal(embedded("Local", document, "a cat"), encode(model, ["a cat"]))
    np.testing.assert_array_equal(embedded("Local", query, "a cat"), encode(model, ["a cat"], prompt="find it"))
    mbeir = "MSCOCOT2IRetrieval"
    np.testing.assert_array_equal(embedded(mbeir, document, '"a cat"'), encode(model, ["A cat."]))
    np.testing.assert_array_equal(embedded(mbeir, query, "a cat"), encode(model, ["a cat."], prompt="Find it."))


def test_what_is_encoded_in_blocks_is_the_same(encoder, monkeypatch):
    told = {"task_metadata": Words.metadata, "hf_split": "test", "hf_subset": "default"}
    batches = Loader([{"text": ["a", "a longer text"]}, {"text": ["b", "a cat"], "image": [None, squares(1)[0]]}])
    whole = encoder.encode(batches, **told)
    monkeypatch.setattr("umarvel_hf.evaluation.mteb.BLOCK", 3)
    np.testing.assert_allclose(encoder.encode(batches, **told), whole, atol=1e-6)
    assert whole.shape[0] == 4


def test_a_model_of_the_hub_has_its_id_and_commit(checkpoint, monkeypatch, tmp_path):
    snapshot = shutil.copytree(checkpoint, tmp_path / "snapshots/0123abc")
    monkeypatch.setattr("umarvel_hf.evaluation.mteb.local_folder", lambda *_, **__: snapshot)
    monkeypatch.setattr("umarvel_hf.evaluation.mteb.load", lambda *_, **__: load(checkpoint))
    meta = MtebEncoder("my-team/my-embedder@main").mteb_model_meta
    assert (meta.name, meta.revision) == ("my-team/my-embedder", "0123abc")
    assert meta.reference == "https://huggingface.co/my-team/my-embedder"


def test_what_cannot_be_embedded_is_refused(encoder):
    told = {"task_metadata": Words.metadata, "hf_split": "test", "hf_subset": "default"}
    with pytest.raises(ValueError, match=r"row 1 has neither text nor picture; its columns are \['text'\]"):
        encoder.encode(Loader([{"text": ["a"]}, {"text": [" "]}]), **told)
    with pytest.raises(ValueError, match="precision cannot be given"):
        encoder.encode(Loader([{"text": ["a"]}]), precision="int8", **told)
    assert encoder.encode(Loader(), **told).shape == (0, encoder.model.get_embedding_dimension())
