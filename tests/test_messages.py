"""How an item becomes a chat, and how one that cannot be read is refused."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from pictures import picture
from umarvel_hf.messages import placed
from umarvel_hf.modeling.messages_umarvel import ItemError, load_image, stack_frames, to_conversations


def read_nothing(source):
    """Stands for a decoder: hands back what it is given."""
    return source


def chat(item):
    (conversation,) = to_conversations([item], read_nothing)
    return conversation


def summary(item):
    """The user's parts, pictures by their size."""
    (message,) = chat(item)
    assert message["role"] == "user"
    return [part["image"].size if part["type"] == "image" else part[part["type"]] for part in message["content"]]


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / "picture.png"
    picture(30, 20, seed=0).save(path)
    return path


def test_a_string_is_text_always(image_file):
    assert summary("a dog") == ["a dog"]
    assert summary(str(image_file)) == [str(image_file)]
    assert summary("https://example.org/cat.png") == ["https://example.org/cat.png"]
    assert summary(np.str_("a dog")) == ["a dog"]


def test_a_path_is_a_file(image_file, film):
    assert summary(image_file) == [(30, 20)]
    assert summary(film) == [film]  # a video is handed to the reader of videos


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_dict_is_media_then_text_in_whatever_order_it_is_written(image_file, kind):
    two = kind([picture(8, 9, seed=0), image_file])
    assert summary({"text": "a dog", "image": two}) == [(8, 9), (30, 20), "a dog"]
    assert summary({"text": "a", "video": "v", "image": str(image_file)} | {"video": image_file}) == [
        (30, 20),
        image_file,
        "a",
    ]
    assert summary({"image": None, "text": "a dog", "video": None}) == ["a dog"]
    assert summary({"image": image_file, "text": None}) == [(30, 20)]


def test_under_video_a_list_of_pictures_is_one_video_and_a_list_of_files_several(film):
    frames = [picture(8, 8, seed=0), picture(8, 8, seed=1)]
    assert summary({"video": frames}) == [frames]
    assert summary({"video": [film, film]}) == [film, film]
    assert summary({"video": [frames, frames[:1]]}) == [frames, frames[:1]]


def test_arrays_are_pictures_or_videos_by_their_dimensions():
    assert summary(np.zeros((4, 5, 3), np.uint8)) == [(5, 4)]
    assert summary(np.zeros((4, 5), np.uint8)) == [(5, 4)]
    assert summary(np.zeros((4, 5, 1), np.uint8)) == [(5, 4)]
    assert summary(np.zeros((4, 5, 4), np.uint8)) == [(5, 4)]
    assert summary(torch.zeros((4, 5, 3), dtype=torch.uint8)) == [(5, 4)]
    film = np.zeros((2, 4, 5, 3), np.uint8)
    assert summary(film)[0] is film


def test_a_chat_keeps_its_order_and_its_turns(image_file):
    image = picture(8, 9, seed=0)
    given = [
        {"role": "system", "content": "Find it."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "left"}, {"type": "image", "image": image}, {"text": "r"}],
        },
        {"role": "assistant", "content": "Which?"},
        {"role": "user", "content": [{"type": "image", "path": str(image_file)}]},
    ]
    system, first, assistant, last = chat(given)
    assert [message["role"] for message in (system, first, assistant, last)] == ["system", "user", "assistant", "user"]
    assert system["content"] == [{"type": "text", "text": "Find it."}]
    assert [part["type"] for part in first["content"]] == ["text", "image", "text"]
    assert last["content"][0]["image"].size == (30, 20)
    assert chat({"role": "user", "content": "a dog"}) == [
        {"role": "user", "content": [{"type": "text", "text": "a dog"}]}
    ]


def test_the_callers_objects_are_left_alone(image_file):
    item = {"text": "a dog", "image": [image_file]}
    message = {"role": "user", "content": [{"type": "image", "image": image_file}]}
    before = (dict(item), list(message["content"]), dict(message["content"][0]))
    to_conversations([item, [message]], read_nothing)
    assert (item, message["content"], message["content"][0]) == before


def test_a_picture_becomes_rgb_whatever_its_mode():
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    for mode in ("RGB", "RGBA", "P", "CMYK"):
        assert np.abs(np.asarray(load_image(red.convert(mode))).astype(int) - (255, 0, 0)).max() <= 1
    assert load_image(Image.new("1", (4, 4), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(Image.new("LA", (4, 4), (7, 255))).getpixel((0, 0)) == (7, 7, 7)
    assert np.asarray(load_image(np.full((2, 2), 9, np.uint8))).tolist() == [[[9, 9, 9]] * 2] * 2


def test_a_file_is_turned_upright(tmp_path):
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    picture(30, 20, seed=0).save(path, exif=exif)
    assert load_image(path).size == (20, 30)


def test_frames_of_one_video_must_have_one_size():
    assert stack_frames([picture(8, 6, seed=0)] * 3).shape == (3, 6, 8, 3)
    with pytest.raises(ValueError, match=r"must have one size, found \[\(8, 8\), \(9, 8\)\]"):
        stack_frames([picture(8, 8, seed=0), picture(9, 8, seed=0)])
    with pytest.raises(ValueError, match="a video without frames"):
        stack_frames([])


def truncated(path):
    picture(60, 60, seed=0).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def text_file(path):
    path.write_text("no picture at all")
    return path


BAD = {
    "nothing": (lambda _: "", "it is empty; give some text, a picture or a video"),
    "whitespace": (lambda _: " \n\t ", "it is empty"),
    "an empty dict": (lambda _: {}, "it is empty"),
    "an empty list of pictures": (lambda _: {"image": []}, "it is empty"),
    "empty text": (lambda _: {"text": " ", "image": None}, "it is empty"),
    "an empty list": (lambda _: [], "a list is not an item"),
    "an empty chat": (lambda _: [{"role": "user", "content": []}], "it is empty"),
    "an instruction alone": (lambda _: [{"role": "system", "content": "Find it."}], "it is empty"),
    "None": (lambda _: None, "a NoneType is not an item"),
    "a number": (lambda _: 3, "a int is not an item; give a str"),
    "bytes": (lambda _: b"a dog", "a bytes is not an item"),
    "an unknown key": (
        lambda _: {"img": "a.png"},
        "unknown key 'img'; the keys of an item are 'text', 'image', 'video'",
    ),
    "text of the wrong type": (lambda _: {"text": 3}, "text is a int; give a str"),
    "several texts": (lambda _: {"text": ["a", "b"]}, "text is a list; give a str"),
    "a picture of the wrong type": (lambda _: {"image": 3}, "a picture cannot be a int"),
    "a missing file": (lambda tmp: tmp / "gone.png", r"gone\.png' does not exist; check the path"),
    "a missing file in a dict": (lambda tmp: {"image": str(tmp / "gone.png")}, r"gone\.png' does not exist"),
    "a missing film": (lambda tmp: {"video": tmp / "gone.mp4"}, r"gone\.mp4' does not exist"),
    "a folder": (lambda tmp: tmp, "is a folder; check the path"),
    "a URL": (lambda _: {"image": "https://example.org/a.png"}, "is a URL, and nothing is fetched; download it"),
    "a file URL": (lambda _: {"image": "file:///a.png"}, "is a URL"),
    "inline data": (lambda _: {"image": "data:image/png;base64,AAAA"}, "is a URL"),
    "a film's URL": (lambda _: {"video": "http://example.org/a.mp4"}, "is a URL"),
    "an unreadable picture": (lambda tmp: text_file(tmp / "a.png"), "is not a picture that Pillow can read"),
    "a truncated picture": (
        lambda tmp: truncated(tmp / "a.png"),
        r"a\.png' is damaged .*; replace or leave out the file",
    ),
    "a truncated picture, opened": (lambda tmp: opened(truncated(tmp / "a.png")), "the picture cannot be decoded"),
    "a picture of no size": (lambda _: Image.new("RGB", (0, 5)), "a picture of 0 x 5 pixels holds nothing"),
    "an array of no size": (lambda _: np.zeros((0, 5, 3), np.uint8), r"a picture of shape \(0, 5, 3\) holds nothing"),
    "a float array": (lambda _: np.zeros((5, 5, 3)), "dtype float64 is not a picture; give uint8"),
    "a boolean array": (lambda _: np.zeros((5, 5), bool), "dtype bool is not a picture"),
    "channels first": (lambda _: np.zeros((3, 5, 5), np.uint8), r"shape \(3, 5, 5\) .* is not a picture"),
    "a vector": (lambda _: np.zeros(5, np.uint8), r"shape \(5,\) .* is not a picture"),
    "a deep picture": (lambda _: Image.new("I;16", (5, 5)), "mode 'I;16' has no known range; scale it to 8 bits"),
    "an unknown role": (lambda _: [{"role": "tool", "content": "a"}], "role 'tool' is unknown"),
    "a chat without content": (lambda _: [{"role": "user"}], "the content of a user message is a NoneType"),
    "a part that is no dict": (lambda _: [{"role": "user", "content": ["a"]}], "a part of a message is a str"),
    "a part of unknown type": (
        lambda _: [{"role": "user", "content": [{"type": "audio", "audio": "a"}]}],
        "a part of type 'audio' .* is not understood",
    ),
    "a part with two contents": (
        lambda _: [{"role": "user", "content": [{"type": "image", "image": "a", "text": "b"}]}],
        r"the keys \['image', 'text'\] is not understood",
    ),
    "a picture in a system message": (
        lambda _: [{"role": "system", "content": [{"type": "image", "image": picture(8, 8, seed=0)}]}],
        "a system message is the instruction and holds text only",
    ),
    "messages beside other things": (lambda _: [{"role": "user", "content": "a"}, "b"], "a list is not an item"),
}


def opened(path):
    """As a caller may hand it over: the file read, the pixels not yet decoded."""
    import io

    return Image.open(io.BytesIO(path.read_bytes()))


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_embedded_is_refused_by_index_with_the_remedy(name, tmp_path):
    make, message = BAD[name]
    bad = make(tmp_path)
    with pytest.raises(ItemError, match=message) as caught:
        to_conversations(["a dog", bad, ""], read_nothing)
    assert caught.value.index == 1 and caught.value.item is bad
    assert str(caught.value).startswith("Item 1 (") and isinstance(caught.value, ValueError)


def test_an_error_shows_its_item_in_one_short_line():
    with pytest.raises(ItemError, match=r"Item 0 \(a RGB picture of 0 x 5\)"):
        to_conversations([Image.new("RGB", (0, 5))], read_nothing)
    with pytest.raises(ItemError, match=r"Item 0 \(an array of shape \(7,\)\)"):
        to_conversations([np.zeros(7)], read_nothing)
    with pytest.raises(ItemError) as caught:
        to_conversations([{"words": "x" * 5000}], read_nothing)
    assert len(str(caught.value)) < 400


def test_an_error_travels_between_processes():
    with pytest.raises(ItemError) as caught:
        to_conversations(["a", {"words": "b"}], read_nothing)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value) and (again.index, again.item) == (1, {"words": "b"})


def test_an_error_of_the_video_reader_is_the_items():
    def broken(source):
        raise ValueError("no frames")

    with pytest.raises(ItemError, match=r"Item 1 .*: no frames"):
        to_conversations(["a", {"video": np.zeros((1, 2, 2, 3))}], broken)


def test_an_item_of_some_places_is_told_by_its_place_among_all():
    items = ["a", "b", 3, "d", "e"]
    with pytest.raises(ItemError, match=r"^Item 2 \(3\): a int is not") as caught, placed(items, [4, 2, 0]):
        to_conversations([items[at] for at in (4, 2, 0)], read_nothing)
    assert (caught.value.index, caught.value.item) == (2, 3)


def test_an_item_that_was_found_in_another_list_is_told_by_what_it_is():
    items = ["a", picture(5, 5, seed=0), "c"]
    with pytest.raises(ItemError) as caught, placed(items, [2, 1]):
        raise ItemError(7, items[1], "no good")
    assert caught.value.index == 1


def test_an_error_of_no_item_stays_as_it_is():
    with pytest.raises(ValueError, match=r"^something else$"), placed(["a"], [0]):
        raise ValueError("something else")
