"""A checkpoint as ``SentenceTransformer``: inputs, prompts, saving, and what the host offers on top."""

import shutil

import av
import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoProcessor

from backbones import FAMILIES
from pictures import picture, write_film
from umarvel_hf.encoding import encode, load
from umarvel_hf.modeling.modeling_umarvel import PROMPTS, UMarvelModel

INSTRUCTION = "Find an image that matches the given text."


def close(left, right, atol=1e-5):
    np.testing.assert_allclose(np.asarray(left), np.asarray(right), rtol=0, atol=atol)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("family", FAMILIES)
def test_encode_equals_processor_and_model(embedders, checkpoints, pictures, family):
    chat = [
        {"role": "system", "content": [{"type": "text", "text": INSTRUCTION}]},
        {"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "a dog"}]},
    ]
    processor = AutoProcessor.from_pretrained(checkpoints(family), trust_remote_code=True)
    model = UMarvelModel.from_pretrained(checkpoints(family))
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).pooler_output
    embedder = embedders(family)
    close(embedder.encode([{"text": "a dog", "image": pictures[0]}], prompt=INSTRUCTION), expected)
    close(embedder.encode([chat]), expected)


def test_every_kind_of_item_mixed_in_one_call(embedder, pictures, frames, film, tmp_path):
    file = tmp_path / "picture.png"
    pictures[0].save(file)
    array = np.asarray(pictures[0])
    message = {"role": "user", "content": [{"type": "image", "image": pictures[0]}]}
    items = [
        "a dog",
        {"text": "a dog"},
        [{"role": "user", "content": "a dog"}],
        pictures[0],
        file,
        array,
        {"image": str(file)},
        {"image": [array]},
        [message],
        {"image": file, "text": "a dog"},
        {"text": "a dog", "image": array},
        {"image": [pictures[0], file]},
        [{"role": "user", "content": [*message["content"], *message["content"]]}],
        {"video": frames},
        {"video": np.stack([np.asarray(frame) for frame in frames])},
        np.stack([np.asarray(frame) for frame in frames]),
        {"video": film},
        film,
        [{"role": "user", "content": [{"type": "video", "video": str(film)}]}],
    ]
    alike = [(0, 3), (3, 9), (9, 11), (11, 13), (13, 16), (16, 19)]
    vectors = embedder.encode(items, batch_size=8)
    assert vectors.shape == (len(items), 32) and vectors.dtype == np.float32
    close(np.linalg.norm(vectors, axis=1), np.ones(len(items)), atol=1e-6)
    for start, end in alike:
        close(vectors[start:end], vectors[[start] * (end - start)])
    one_of_each = vectors[[start for start, _ in alike]]
    assert np.triu(one_of_each @ one_of_each.T, 1).max() < 0.9999
    close(np.concatenate([embedder.encode([item]) for item in items]), vectors)


def test_a_single_item_gives_a_single_vector(embedder, pictures):
    close(embedder.encode("a dog"), embedder.encode(["a dog"])[0])
    close(embedder.encode(pictures[0]), embedder.encode([pictures[0]])[0])
    close(
        embedder.encode({"image": pictures[0], "text": "a"}), embedder.encode([{"image": pictures[0], "text": "a"}])[0]
    )


def test_a_prompt_is_the_instruction_and_named_ones_are_stored(embedder):
    assert embedder.prompts == PROMPTS and embedder.default_prompt_name is None
    spelled = embedder.encode(["a dog"], prompt=PROMPTS["text-to-image"])
    close(embedder.encode(["a dog"], prompt_name="text-to-image"), spelled)
    plain = embedder.encode(["a dog"])
    close(embedder.encode_query(["a dog"]), plain)
    close(embedder.encode_document(["a dog"]), plain)
    assert plain[0] @ spelled[0] < 0.999


def test_an_instruction_of_a_chat_and_a_prompt_are_joined(embedder):
    chat = [{"role": "system", "content": "Be quick."}, {"role": "user", "content": "a dog"}]
    text = embedder.processor.apply_chat_template(
        [{"role": "system", "content": "Find it. Be quick."}, chat[1]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    joined = embedder.preprocess([chat], prompt="Find it.")["input_ids"]
    assert joined.tolist() == text["input_ids"].tolist()


def test_left_out_of_the_mean_are_the_instruction_and_its_markers(embedder):
    config = embedder[0].model.config
    features = embedder.preprocess(["a dog"], prompt=INSTRUCTION)
    with torch.no_grad():
        states = embedder[0].model(features["input_ids"], features["attention_mask"]).last_hidden_state[0]
    ids = features["input_ids"][0].tolist()
    start, end = ids.index(config.instruction_start_token_id), ids.index(config.instruction_end_token_id)
    assert embedder.tokenizer.decode(ids[start + 1 : end]) == INSTRUCTION
    mean = torch.cat([states[:start], states[end + 1 :]]).mean(dim=0)
    close(embedder.encode(["a dog"], prompt=INSTRUCTION)[0], mean / mean.norm())


def test_every_film_keeps_its_own_clock(embedders, frames):
    embedder = embedders("qwen3_vl")  # writes the seconds between the frames
    array = np.stack([np.asarray(frame) for frame in frames])
    clock = {"total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    slow, fast = ({"video": {"array": array, "video_metadata": {"fps": fps, **clock}}} for fps in (0.5, 8.0))
    alone = np.concatenate([embedder.encode([slow]), embedder.encode([fast]), embedder.encode([array])])
    assert np.triu(alone @ alone.T, 1).max() < 1 - 1e-6
    close(embedder.encode([slow, fast, array]), alone)
    close(embedder.encode([fast, array, slow]), alone[[1, 2, 0]])


def test_a_film_is_sampled_as_its_processor_asks(embedders, film):
    grids = {}
    for family in ("qwen2_vl", "qwen3_vl"):
        embedder = embedders(family)
        features = embedder.preprocess([film])
        grids[family] = features["video_grid_thw"][0].tolist()
        # 16 frames in 4 seconds, 2 wanted a second, two to a patch.
        assert grids[family][0] == 4
    close(embedder.encode([film]), embedder.encode([{"video": film}]))


def frames_of(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


# Of 16 frames, 4 a second: from the first to the last, evenly, an even number (recipe.md §1.6); by hand.
SAMPLED = [
    ({"num_frames": 12}, [0, 1, 3, 4, 5, 7, 8, 10, 11, 12, 14, 15]),
    ({"num_frames": 5}, [0, 5, 10, 15]),
    ({"num_frames": 1}, [0, 15]),
    ({"num_frames": 40}, list(range(16))),
    ({"fps": 2.0}, [0, 2, 4, 6, 9, 11, 13, 15]),
    ({"fps": 0.1}, [0, 5, 10, 15]),
    ({"fps": 100}, list(range(16))),
]


@pytest.mark.parametrize(("asked", "places"), SAMPLED)
def test_a_film_may_be_told_how_it_is_sampled(embedder, film, asked, places):
    seen = np.stack([frames_of(film)[at] for at in places])
    clock = {"fps": 4.0, "total_num_frames": 16, "duration": 4.0, "frames_indices": places}
    expected = embedder.encode([{"video": {"array": seen, "video_metadata": clock}, "text": "a square"}])
    close(embedder.encode([{"video": {"path": film, **asked}, "text": "a square"}]), expected)
    close(encode(embedder, [{"video": {"path": str(film), **asked}, "text": "a square"}]), expected)


def test_no_more_frames_are_seen_than_the_reference_sees(embedder, tmp_path):
    film = write_film(tmp_path / "long.mp4", 1600)
    features = embedder.preprocess([{"video": {"path": film, "fps": 4}}])
    assert features["video_grid_thw"][0][0] == 768 // 2  # two to a patch


@pytest.mark.parametrize("asked", [{}, {"fps": 2.0}, {"num_frames": 12}])
def test_frames_that_an_edit_has_cut_off_do_not_count(embedder, tmp_path, asked):
    """Cutting without encoding anew leaves frames in the file, and in its header, that are not shown."""
    whole, cut = write_film(tmp_path / "whole.mp4", 40), tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w", options={"avoid_negative_ts": "disabled"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                shift = 6 * round(1 / 4 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    with av.open(str(cut)) as container:
        assert container.streams.video[0].frames == 40
    shown = frames_of(cut)
    assert len(shown) == 34
    if asked:
        count = asked.get("num_frames") or 2 * round(34 / 4 * asked["fps"] / 2)
        places = [round(at) for at in np.linspace(0, 33, count).tolist()]
        clock = {"fps": 4.0, "total_num_frames": 34, "duration": 34 / 4, "frames_indices": places}
        seen = np.stack([shown[at] for at in places])
        expected = embedder.encode([{"video": {"array": seen, "video_metadata": clock}}])
        close(embedder.encode([{"video": {"path": cut, **asked}}]), expected)
    assert len(encode(embedder, [{"video": {"path": cut, **asked}}])) == 1


FEW = [(family, frames) for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision") for frames in (1, 3)]


@pytest.mark.parametrize(("family", "frames"), [one for one in FEW if one != ("qwen3_vl", 1)])
def test_a_film_with_fewer_frames_than_asked_for_gives_all_it_has(embedders, tmp_path, family, frames):
    film = write_film(tmp_path / "short.avi", frames)
    places = list(range(frames))
    clock = {"fps": 4.0, "total_num_frames": frames, "duration": frames / 4, "frames_indices": places}
    whole = {"array": np.stack(frames_of(film)), "video_metadata": clock}
    for asked in ({"num_frames": 12}, {"fps": 2.0}):
        items = [{"video": whole}, {"video": {"path": film, **asked}}]
        expected, found = (embedders(family).encode([item]) for item in items)
        close(found, expected)
        close(encode(embedders(family), items[1:]), expected)


def test_a_film_of_one_frame_is_refused_by_name_where_the_processor_takes_none(embedders, tmp_path):
    film = {"video": {"path": write_film(tmp_path / "short.avi", 1), "fps": 2.0}}
    with pytest.raises(ValueError, match=r"^Item 1 .*short\.avi.*: the processor refuses it"):
        embedders("qwen3_vl").encode(["a dog", film])


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_a_chat_of_several_rounds_has_one_vector_in_every_library(embedders, checkpoints, pictures, family):
    def round_of(picture, text):
        return {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}

    system = {"role": "system", "content": [{"type": "text", "text": INSTRUCTION}]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": "Which colour?"}]}
    chats = [
        [round_of(pictures[0], "longer"), round_of(pictures[1], "red")],
        [round_of(pictures[0], "longer"), answer, round_of(pictures[1], "red")],
        [round_of(pictures[1], "red"), round_of(pictures[0], "longer")],
    ]
    processor = AutoProcessor.from_pretrained(checkpoints(family), trust_remote_code=True)
    model = UMarvelModel.from_pretrained(checkpoints(family))
    expected = []
    for chat in chats:
        inputs = processor.apply_chat_template([system, *chat], tokenize=True, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            expected.append(model(**inputs).pooler_output[0].numpy())
    mixed = [*chats, {"image": pictures[0], "text": "longer"}]
    close(embedders(family).encode(mixed, prompt=INSTRUCTION)[:3], expected)
    close(encode(embedders(family), mixed, prompt=INSTRUCTION)[:3], expected)
    assert np.triu(np.stack(expected) @ np.stack(expected).T, 1).max() < 1 - 1e-4  # order and answer count


@pytest.mark.parametrize("family", ["smolvlm", "llava_onevision"])
def test_videos_that_would_be_padded_are_refused_in_one_batch_and_taken_apart(embedders, pictures, frames, family):
    embedder = embedders(family)
    short, long = {"video": frames[:2], "text": "a"}, {"video": frames}
    with pytest.raises(ValueError, match=r"one number of frames \(found \[2, 4\]\).* batch_size=1"):
        embedder.encode([pictures[0], long, short])
    vectors = embedder.encode([pictures[0], long, short], batch_size=1)
    close(vectors[1:2], embedder.encode([long]))
    close(vectors[2:], embedder.encode([short]))


def test_pictures_beside_videos_are_refused_where_both_share_a_tensor(embedders, pictures, frames):
    with pytest.raises(ValueError, match="no picture beside them"):
        embedders("smolvlm").encode([pictures[0], {"video": frames}])
    with pytest.raises(ValueError, match="no picture beside them"):
        embedders("smolvlm").encode([{"image": pictures[0], "video": frames}])


BROKEN_VIDEOS = {
    "a broken file": (lambda tmp: broken(tmp / "a.mp4"), "is no video that can be read"),
    "an empty file": (lambda tmp: empty(tmp / "a.mp4"), "is no video that can be read"),
    "no frames": (lambda _: np.zeros((0, 8, 8, 3), np.uint8), r"a video of shape \(0, 8, 8, 3\)"),
    "floats": (lambda _: np.zeros((2, 8, 8, 3)), "dtype float64; give uint8 frames"),
    "channels first": (lambda _: np.zeros((2, 3, 8, 8), np.uint8), r"give uint8 frames of shape \(F, H, W, 3\)"),
    "three dimensions": (lambda _: {"video": np.zeros((8, 8, 3), np.uint8)}, r"a video of shape \(8, 8, 3\)"),
    "frames of two sizes": (lambda _: {"video": [picture(8, 8, 0), picture(9, 8, 0)]}, "must have one size"),
    "a frame that is none": (lambda _: {"video": [picture(8, 8, 0), 3]}, "a picture cannot be a int"),
    "a dict of something else": (lambda _: {"video": {"frames": 3}}, r"a video with the keys \['frames'\]"),
    "a number": (lambda _: {"video": 3}, r"a video of shape \(\)"),
    "a film of sound": (lambda tmp: sound(tmp / "a.mp4"), "a.mp4' is no video that can be read .it holds no pictures"),
    "a film without frames": (lambda tmp: write_film(tmp / "a.avi", 0), "it holds no frames"),
    "a film that is not there": (lambda tmp: {"video": {"path": tmp / "b.mp4", "fps": 2}}, r"b\.mp4' does not exist"),
    "no frames of a film": (
        lambda tmp: {"video": {"path": broken(tmp / "a.mp4"), "num_frames": 0}},
        "a whole number",
    ),
    "two ways to sample": (
        lambda tmp: {"video": {"path": broken(tmp / "a.mp4"), "num_frames": 4, "fps": 2}},
        "give either 'num_frames'",
    ),
}


def sound(path):
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux([*stream.encode(frame), *stream.encode()])
    return path


def broken(path):
    path.write_bytes(b"no film at all" * 100)
    return path


def empty(path):
    path.touch()
    return path


@pytest.mark.parametrize("name", BROKEN_VIDEOS)
def test_a_video_that_cannot_be_read_is_refused_by_index(embedder, tmp_path, name):
    make, message = BROKEN_VIDEOS[name]
    with pytest.raises(ValueError, match=message) as caught:
        embedder.encode(["a dog", make(tmp_path)])
    assert caught.value.index == 1


@pytest.mark.parametrize("movflags", ["", "faststart"], ids=["index_last", "index_first"])
def test_a_truncated_film_is_never_silently_shorter(embedder, tmp_path, movflags):
    film = write_film(tmp_path / "whole.mp4", **({"movflags": movflags} if movflags else {}))
    assert len(embedder.encode([film])) == 1
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(film.read_bytes()[: film.stat().st_size * 3 // 4])
    with pytest.raises(ValueError, match=r"cut\.mp4' is (no video that can be read|damaged)"):
        embedder.encode([cut])


def test_a_film_in_a_format_that_does_not_count_its_frames_is_read_alike(embedder, film, tmp_path):
    uncounted = write_film(tmp_path / "square.mkv")
    with av.open(uncounted) as container:
        assert container.streams.video[0].frames == 0
    given = [embedder.preprocess([{"video": path}]) for path in (film, uncounted)]
    assert given[0]["video_grid_thw"].tolist() == given[1]["video_grid_thw"].tolist()
    close(embedder.encode([{"video": uncounted}]), embedder.encode([{"video": film}]), atol=1e-3)


def test_a_backbone_without_videos_says_so(embedder, frames, monkeypatch):
    monkeypatch.setattr(embedder.processor, "video_processor", None)
    with pytest.raises(ValueError, match=r"the processor of this checkpoint \(Qwen2VLProcessor\) takes no video"):
        embedder.encode([{"video": frames}])


def test_a_picture_that_cannot_be_read_is_refused_by_index(embedder, tmp_path):
    bad = tmp_path / "bad.png"
    picture(60, 60, seed=0).save(bad)
    bad.write_bytes(bad.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"Item 0 .*bad\.png.* is damaged"):
        embedder.encode([bad])


def test_an_empty_list_gives_no_vectors(embedder):
    assert len(embedder.encode([])) == 0


def test_precision_and_truncation_are_the_hosts(embedder, pictures):
    items = ["a dog", pictures[0], "a bench"]
    full = embedder.encode(items)
    quantised = embedder.encode(items, precision="int8")
    assert quantised.dtype == np.int8 and quantised.shape == full.shape
    short = embedder.encode(items, truncate_dim=8, normalize_embeddings=True)
    close(short, full[:, :8] / np.linalg.norm(full[:, :8], axis=1, keepdims=True))
    tensors = embedder.encode(items, convert_to_tensor=True)
    close(embedder.similarity(tensors, tensors), full @ full.T)


IN_TWO_PROCESSES = """
import sys
import numpy as np
from PIL import Image
from sentence_transformers import SentenceTransformer

if __name__ == "__main__":
    embedder = SentenceTransformer(sys.argv[1], trust_remote_code=True)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8))
    items = ["a dog", image, {"image": image, "text": "a"}, "a bench"] * 3
    vectors = embedder.encode(items, prompt="Find it.", device=["cpu", "cpu"], chunk_size=3)
    assert np.abs(vectors - embedder.encode(items, prompt="Find it.")).max() < 1e-5
"""


@pytest.mark.slow
def test_two_processes_give_the_vectors_of_one(checkpoint, run_foreign):
    # Workers start afresh and need a torchvision that imports, which the second environment sees to.
    run_foreign(IN_TWO_PROCESSES, checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_save_load_save_writes_the_same_bytes_twice_over(checkpoints, tmp_path, family):
    source, saved = checkpoints(family), [files_of(checkpoints(family))]
    for at in range(2):
        load(str(source)).save_pretrained(tmp_path / str(at))
        source = tmp_path / str(at)
        saved.append(files_of(source))
    assert saved[0].keys() == saved[1].keys()
    for name, content in saved[0].items():
        assert content == saved[1][name] == saved[2][name], name


def test_what_is_saved_by_either_library_is_the_same_model(checkpoint, tmp_path, pictures):
    items = ["a dog", {"image": pictures[0], "text": "a"}]
    embedder = load(str(checkpoint))
    expected = embedder.encode(items, prompt=INSTRUCTION)
    embedder.prompts["mine"] = "Find mine."
    embedder.save_pretrained(tmp_path / "host")
    again = load(str(tmp_path / "host"))
    assert again.prompts["mine"] == "Find mine." and again.prompts["text-to-image"] == PROMPTS["text-to-image"]
    close(again.encode(items, prompt=INSTRUCTION), expected, atol=1e-6)
    model = UMarvelModel.from_pretrained(tmp_path / "host")
    features = embedder.preprocess(items, prompt=INSTRUCTION)
    inputs = {name: features[name] for name in ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")}
    with torch.no_grad():
        vectors = model(**inputs, mm_token_type_ids=features["mm_token_type_ids"]).pooler_output
    close(vectors, expected)


def test_saving_a_model_over_a_sentence_transformer_keeps_its_prompts(checkpoint, tmp_path):
    embedder = load(str(checkpoint))
    embedder.prompts["mine"] = "Find mine."
    embedder.save_pretrained(tmp_path)
    UMarvelModel.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert load(str(tmp_path)).prompts["mine"] == "Find mine."


def test_code_that_is_not_trusted_is_not_run(checkpoint):
    with pytest.raises(ValueError, match="trust_remote_code"):
        SentenceTransformer(str(checkpoint))


def test_the_dtype_is_the_models_and_vectors_stay_float32(checkpoint, pictures):
    half = load(str(checkpoint), model_kwargs={"dtype": torch.bfloat16})
    assert half[0].model.vlm.dtype == torch.bfloat16
    vectors = half.encode(["a dog", pictures[0]])
    assert vectors.dtype == np.float32
    close(np.linalg.norm(vectors, axis=1), [1, 1], atol=1e-6)


def test_old_transformers_is_refused_here_too(checkpoint, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoint, tmp_path / "loaded_by_the_host")
    monkeypatch.setattr(transformers, "__version__", "5.17.9")
    with pytest.raises(ImportError, match=r"needs transformers >= 5\.18\.0, found 5\.17\.9"):
        load(folder)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_an_error_names_the_place_in_what_was_given_to_encode(embedder, pictures, batch_size):
    items = [f"{'long ' * at}dog" for at in range(9)] + [{"image": "https://x.y/z.png"}, pictures[0], "a dog"]
    with pytest.raises(ValueError, match=r"^Item 9 "):
        embedder.encode(items, batch_size=batch_size)
    with pytest.raises(ValueError, match=r"^Item 1 "):
        embedder.preprocess([pictures[0], {"image": "https://x.y/z.png"}])


def test_what_the_processor_refuses_is_named_too(embedder):
    with pytest.raises(ValueError, match=r"^Item 1 .*the processor refuses it \(absolute aspect ratio"):
        embedder.encode(["a dog", Image.new("RGB", (1, 10000)), "a longer dog"])


def test_greyscale_arrays_are_pictures_also_among_themselves(embedder):
    grey = (np.arange(56 * 56, dtype=np.uint32) % 256).astype(np.uint8).reshape(56, 56)
    close(embedder.encode([grey, grey.T]), embedder.encode([Image.fromarray(grey), Image.fromarray(grey.T.copy())]))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_frames_without_a_clock_are_timed_as_the_processor_times_them(embedders, checkpoints, frames, family):
    video = np.stack([np.asarray(frame) for frame in frames])
    chat = [{"role": "user", "content": [{"type": "video", "video": video}, {"type": "text", "text": "a dog"}]}]
    processor = AutoProcessor.from_pretrained(checkpoints(family), trust_remote_code=True)
    unsampled = {"videos_kwargs": {"do_sample_frames": False}}
    inputs = processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs=unsampled
    )
    with torch.no_grad():
        expected = UMarvelModel.from_pretrained(checkpoints(family))(**inputs).pooler_output
    close(embedders(family).encode([{"video": video, "text": "a dog"}]), expected)


@pytest.mark.parametrize("item", [{"audio": "x"}, {"array": np.zeros(9), "sampling_rate": 9}, np.zeros(9)])
def test_sound_is_refused_by_index(embedder, item):
    with pytest.raises(ValueError, match=r"^Item 0 "):
        embedder.encode([item])


def test_pictures_in_columns_of_dicts_are_read_as_the_datasets_library_keeps_them(embedder, pictures):
    items = [{"image": pictures[0], "text": "a dog"}, {"image": pictures[1], "text": "a cat"}]
    column = Dataset.from_dict({"item": items})["item"]
    assert set(column[0]["image"]) == {"bytes", "path"}
    close(embedder.encode(list(column)), embedder.encode(items))


def test_paths_of_pictures_under_video_are_frames(embedder, frames, tmp_path):
    paths = [tmp_path / f"{at}.png" for at in range(len(frames))]
    for path, frame in zip(paths, frames, strict=True):
        frame.save(path)
    close(embedder.encode({"video": [str(path) for path in paths]}), embedder.encode({"video": frames}))
