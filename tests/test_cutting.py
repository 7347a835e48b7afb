"""Long texts are cut where a token ends, in items of every kind; instructions and short texts stay as they are."""

import pytest
import torch

from umarvel_hf.encoding import load
from umarvel_hf.messages import chat
from umarvel_hf.trainer.arguments import UMarvelTrainingArguments
from umarvel_hf.trainer.cutting import cut_item, cut_text
from umarvel_hf.trainer.trainer import UMarvelTrainer

LONG = "one dog beside two red umbrellas, été, 雨 and 🌂 " * 20


@pytest.mark.parametrize("family", ["qwen2_vl", "smolvlm", "llava_onevision"])
@pytest.mark.parametrize("max_tokens", [1, 2, 7, 28, 29, 30, 31])
def test_a_cut_text_is_a_beginning_of_at_most_so_many_tokens(embedders, family, max_tokens):
    tokenizer = embedders(family).tokenizer
    cut = cut_text(LONG, tokenizer, max_tokens)
    ids, kept = (tokenizer(text, add_special_tokens=False).input_ids for text in (LONG, cut))
    assert LONG.startswith(cut) and kept == ids[: len(kept)]
    assert max_tokens - 4 < len(kept) <= max_tokens  # 🌂 is four bytes
    assert cut or max_tokens < 4


def test_a_text_of_as_many_tokens_or_fewer_is_left_alone(embedder):
    length = len(embedder.tokenizer(LONG, add_special_tokens=False).input_ids)
    assert cut_text(LONG, embedder.tokenizer, length) == LONG != cut_text(LONG, embedder.tokenizer, length - 1)
    assert cut_text("", embedder.tokenizer, 1) == ""


def test_every_text_of_an_item_is_cut_and_nothing_else(embedder, pictures):
    def cut(item):
        return cut_item(item, embedder.tokenizer, 3)

    short = cut(LONG)
    assert len(short) < 20
    assert cut({"image": pictures[0], "text": LONG}) == {"image": pictures[0], "text": short}
    assert cut(chat({"image": LONG, "text": LONG}, LONG)) == chat({"image": LONG, "text": short}, LONG)
    assert cut([{"role": "user", "content": LONG}]) == [{"role": "user", "content": short}]
    assert cut(pictures[0]) is pictures[0] and cut({"text": None, "image": LONG}) == {"text": None, "image": LONG}


def test_training_reads_cut_texts(checkpoint, tmp_path):
    embedder = load(str(checkpoint), device="cpu")  # one of its own: a trainer changes the model's settings
    arguments = UMarvelTrainingArguments(str(tmp_path), max_text_tokens=5, report_to="none", use_cpu=True)
    collate = UMarvelTrainer(model=embedder, args=arguments).data_collator
    row = {"query": chat(LONG, "Find it."), "positive": LONG}
    found = collate([row])
    cut = cut_text(LONG, embedder.tokenizer, 5)
    wanted = collate([{"query": chat(cut, "Find it."), "positive": cut}])
    assert all(torch.equal(found[name], wanted[name]) for name in found if name.endswith("input_ids"))
    assert found["query_input_ids"].shape[1] < embedder.preprocess([LONG])["input_ids"].shape[1]
