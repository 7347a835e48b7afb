"""What a chat becomes, and that no text of a user ever becomes a control token."""

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from backbones import FAMILIES, LLAVA_TOKENS, QWEN_PLAIN_TOKENS, QWEN_TOKENS, SMOLVLM_TOKENS
from umarvel_hf.chat_template import control_tokens, make_template, plain_markers, read_markers
from umarvel_hf.encoding import encode
from umarvel_hf.modeling.modeling_umarvel import UMarvelModel

OURS = ("<emb>", "<instruction_start>", "<instruction_end>")
QWEN2_HEAD = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
QWEN_TAIL = "<|im_end|>\n<|im_start|>assistant\n<emb>.<|im_end|>\n"


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": [text(part) if isinstance(part, str) else part for part in parts]}


def system(words):
    return {"role": "system", "content": [text(words)]}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


@pytest.fixture(scope="module")
def processors(checkpoints):
    return lambda family: AutoProcessor.from_pretrained(checkpoints(family), trust_remote_code=True)


@pytest.fixture(scope="module")
def render(processors):
    """``render(chat)``: the text of a chat by the template of Qwen2-VL, without its head and tail."""
    processor = processors("qwen2_vl")

    def rendered(*chat):
        whole = processor.apply_chat_template(list(chat), tokenize=False)
        assert whole.startswith(QWEN2_HEAD) and whole.endswith(QWEN_TAIL)
        return whole.removeprefix(QWEN2_HEAD).removesuffix(QWEN_TAIL)

    return rendered


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen2_vl", f"{QWEN2_HEAD}<|vision_start|><|image_pad|><|vision_end|>%{QWEN_TAIL}"),
        ("qwen2_5_vl", f"{QWEN2_HEAD}<|vision_start|><|image_pad|><|vision_end|>%{QWEN_TAIL}"),
        ("qwen3_vl", f"<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>%{QWEN_TAIL}"),
        (
            "smolvlm",
            "<|im_start|>User: <image>%<end_of_utterance>\nAssistant: <emb>.<end_of_utterance>\n",
        ),
        (
            "llava_onevision",
            "<|im_start|>user \n<image>%<|im_end|><|im_start|>assistant \n<emb>.<|im_end|>",
        ),
        ("without_template", "User: <image>%\nAssistant: <emb>.\n"),
    ],
)
def test_every_family_keeps_its_own_markers(processors, family, expected):
    chat = [system("Find it."), user(IMAGE, "a dog")]
    rendered = processors(family).apply_chat_template(chat, tokenize=False)
    assert rendered == expected.replace("%", "<instruction_start>Find it.<instruction_end> a dog")


@pytest.mark.parametrize(
    ("family", "closing"),
    [
        ("qwen2_vl", "<|im_start|>assistant\n"),
        ("qwen3_vl", "<|im_start|>assistant\n"),
        ("smolvlm", "Assistant:"),
        ("llava_onevision", "<|im_start|>assistant\n"),
        ("without_template", ""),
    ],
)
def test_the_generation_prompt_is_what_the_backbone_writes(bases, family, closing):
    processor = AutoProcessor.from_pretrained(bases(family))
    assert read_markers(processor, generation_prompt=True).closing == closing
    assert read_markers(processor, generation_prompt=False).closing == ""
    processor.chat_template = make_template(processor, generation_prompt=True)
    assert processor.apply_chat_template([user("a dog")], tokenize=False).endswith(f"<emb>.{{}}{closing}".format(
        {"qwen2_vl": "<|im_end|>\n", "qwen3_vl": "<|im_end|>\n", "smolvlm": "<end_of_utterance>\n",
         "llava_onevision": "<|im_end|>", "without_template": "\n"}[family]
    ))  # fmt: skip


def test_a_template_that_reads_plain_strings_only_gives_way_to_plain_markers(bases):
    processor = AutoProcessor.from_pretrained(bases("llava_onevision"))
    processor.chat_template = "{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] ~ '\\n' }}{% endfor %}"
    assert read_markers(processor, generation_prompt=False) == plain_markers(processor)
    assert plain_markers(processor).image == "<image>" and plain_markers(processor).video == "<video>"


def test_an_item_is_written_as_media_then_instruction_then_text(render):
    instruction, picture = "<instruction_start>Find it.<instruction_end>", "<|vision_start|><|image_pad|><|vision_end|>"
    film = picture.replace("image", "video")
    assert render(user("a dog")) == "a dog"
    assert render(user(IMAGE)) == picture
    assert render(user(IMAGE, IMAGE, VIDEO, "a dog")) == f"{picture}{picture}{film}a dog"
    assert render(system("Find it."), user("a dog")) == f"{instruction} a dog"
    assert render(system(" Find it. "), user("a dog")) == "<instruction_start> Find it. <instruction_end> a dog"
    assert render(system("Find it."), user(IMAGE)) == f"{picture}{instruction}."
    assert render(system("Find it."), user(IMAGE, "")) == f"{picture}{instruction}."
    assert render(system("Find it."), user(IMAGE, "a dog")) == f"{picture}{instruction} a dog"


def test_a_chat_keeps_its_own_order(render):
    instruction, picture = "<instruction_start>Find it.<instruction_end>", "<|vision_start|><|image_pad|><|vision_end|>"
    assert render(user("left", IMAGE, "right")) == f"left{picture}right"
    assert render(system("Find it."), user("left", IMAGE, "right")) == f"{instruction} left{picture}right"
    assert render(system("Find it."), user(IMAGE, "a", IMAGE, "b")) == f"{picture}{instruction} a{picture}b"
    assert (
        render({"role": "system", "content": "Find it."}, {"role": "user", "content": "a dog"})
        == f"{instruction} a dog"
    )


def test_system_messages_are_one_instruction(render):
    assert render(system("Be quick."), system("Find it."), user("a dog")) == (
        "<instruction_start>Be quick. Find it.<instruction_end> a dog"
    )
    assert render(system("  "), user("a dog")) == "a dog"


def test_turns_follow_each_other(render):
    turn = "<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>user\n"
    assistant = {"role": "assistant", "content": [text("Which colour?")]}
    assert render(user("a dog"), assistant, user("brown")) == f"a dog{turn.format('Which colour?')}brown"
    marked = render(system("Find it."), user(IMAGE), assistant, user("brown", IMAGE))
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    instruction = "<instruction_start>Find it.<instruction_end>"
    assert marked == f"{picture}{turn.format('Which colour?')}{instruction} brown{picture}"


def test_user_turns_in_a_row_are_all_there(render):
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    assert render(system("Find it."), user(IMAGE), user("a dog"), user(IMAGE)) == (
        f"{picture}<instruction_start>Find it.<instruction_end> a dog{picture}"
    )


def test_an_answer_of_the_assistant_may_stand_last(processors):
    chat = [user("a dog"), {"role": "assistant", "content": [text("It is: ")]}]
    rendered = processors("qwen2_vl").apply_chat_template(chat, tokenize=False)
    assert rendered == f"{QWEN2_HEAD}a dog<|im_end|>\n<|im_start|>assistant\nIt is: <emb>.<|im_end|>\n"


@pytest.mark.parametrize(
    ("chat", "message"),
    [
        ([{"role": "tool", "content": "a"}], "Role tool is unknown"),
        ([user({"type": "audio", "audio": 1})], "A part of type audio is unknown"),
    ],
)
def test_what_the_template_does_not_know_is_an_error(processors, chat, message):
    with pytest.raises(Exception, match=message):
        processors("qwen2_vl").apply_chat_template(chat, tokenize=False)


def test_a_backbone_without_video_says_so(bases):
    processor = AutoProcessor.from_pretrained(bases("without_template"))
    processor.video_token = None
    template = make_template(processor, generation_prompt=False)
    with pytest.raises(Exception, match="This backbone takes no video"):
        processor.apply_chat_template([user(VIDEO)], chat_template=template, tokenize=False)


def spellings(family):
    """Every string that is a control token of a family, and what its tokenizer would fold into one."""
    own = {"smolvlm": (*SMOLVLM_TOKENS, "<video>"), "llava_onevision": LLAVA_TOKENS, "without_template": LLAVA_TOKENS}
    tokens = [*own.get(family, QWEN_TOKENS + QWEN_PLAIN_TOKENS), *OURS]
    return tokens + [token.upper() for token in tokens] + ["<<emb>emb>", "<|im_start<emb>|>", "<emb><emb>"]


def control_ids(processor):
    return set(processor.tokenizer.added_tokens_decoder)


def counted(ids, control):
    return sorted(token for token in np.asarray(ids).ravel().tolist() if token in control)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_becomes_a_control_token_by_any_way(embedders, processors, family):
    embedder, processor = embedders(family), processors(family)
    control = control_ids(processor)
    assert {processor.tokenizer.convert_tokens_to_ids(token) for token in OURS} <= control
    spelled = spellings(family)
    harmless = counted(embedder.preprocess(["a dog"])["input_ids"], control)
    instructed = counted(embedder.preprocess(["a dog"], prompt="Find it.")["input_ids"], control)
    assert len(instructed) == len(harmless) + 2

    def ids(chat):
        return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")["input_ids"]

    everything = "".join(spelled)
    assert counted(embedder.preprocess([everything])["input_ids"], control) == harmless
    assert counted(ids([user(everything)]), control) == harmless
    assert counted(ids([{"role": "user", "content": everything}]), control) == harmless
    assert counted(embedder.preprocess(["a dog"], prompt=everything)["input_ids"], control) == instructed
    assert counted(ids([system(everything), user("a dog")]), control) == instructed
    assert counted(ids([{"role": "system", "content": everything}, user("a dog")]), control) == instructed
    for token in spelled:
        assert counted(ids([user(token)]), control) == harmless, token
        middle = len(token) // 2
        for split in ([user(token[:middle], token[middle:])], [user(token[:middle]), user(token[middle:])]):
            assert counted(ids(split), control) == harmless, token
            assert counted(embedder.preprocess([split])["input_ids"], control) == harmless, token
        halves = [system(token[:middle]), system(token[middle:]), user("a dog")]
        assert counted(ids(halves), control) == instructed, token
        answer = [user("a"), {"role": "assistant", "content": [text(token)]}, user("b")]
        calm = [user("a"), {"role": "assistant", "content": [text("c")]}, user("b")]
        assert counted(ids(answer), control) == counted(ids(calm), control), token


@pytest.mark.parametrize("family", FAMILIES)
def test_a_picture_beside_a_spelled_token_is_still_one_picture(embedders, pictures, family):
    embedder = embedders(family)
    control = control_ids(embedder.processor)
    spelled = "".join(spellings(family))
    wanted = counted(embedder.preprocess([{"image": pictures[0], "text": "a"}])["input_ids"], control)
    given = embedder.preprocess([{"image": pictures[0], "text": spelled}])["input_ids"]
    assert counted(given, control) == wanted
    assert np.isfinite(embedder.encode([{"image": pictures[0], "text": spelled}])).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_all_ways_give_one_vector_for_a_text_that_spells_tokens(embedders, processors, checkpoints, family):
    spelled = "".join(spellings(family))
    model = UMarvelModel.from_pretrained(checkpoints(family))
    chat = [system(spelled), user(spelled)]
    batch = processors(family).apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).pooler_output.numpy()
    embedder = embedders(family)
    for vector in (
        embedder.encode([spelled], prompt=spelled),
        encode(embedder, [spelled], prompt=spelled),
        embedder.encode([chat]),
    ):
        np.testing.assert_allclose(vector, expected, rtol=0, atol=1e-5)


def test_harmless_text_is_left_as_it_is(render):
    for words in ("a < b > c", "<b>bold</b>", "emb", "<|>", "x <em> y", "{{ messages }}", "1\n\n2", " ", "日本"):
        assert render(user(words)) == words


def test_control_tokens_are_all_special_and_bracketed_ones_longest_first(processors):
    found = control_tokens(processors("smolvlm"))
    assert set(found) == {*SMOLVLM_TOKENS, "<video>", *OURS}
    assert [len(token) for token in found] == sorted((len(token) for token in found), reverse=True)
    assert set(control_tokens(processors("qwen2_vl"))) == {*QWEN_TOKENS, *QWEN_PLAIN_TOKENS, *OURS}
