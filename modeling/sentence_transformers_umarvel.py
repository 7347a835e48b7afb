"""The Sentence Transformers module of a U-MARVEL checkpoint: checks items, brings them to chats, calls the host."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers.base.modules.transformer import ProcessingKwargs, Transformer
from transformers.video_utils import VideoMetadata

from .messages_umarvel import ItemError, existing_file, stack_frames, to_conversations

try:
    import av  # for video files only, so a checkpoint loads without it
except ImportError:
    av = None  # type: ignore[assignment]

# Frames of a film are sampled at the reference's rate where the processor has none of its own (recipe.md §1.6).
SAMPLED_FRAMES_PER_SECOND = 2.0
LEAST_FRAMES, MOST_FRAMES = 4, 768  # of a film that is sampled by a rate of its own
# Frames given without a clock count as processors count them, so every way to a vector gives the same one.
FRAMES_PER_SECOND = 24.0


class UMarvelTransformer(Transformer):
    """``Transformer`` that takes text, pictures, videos and chats in one call, and refuses what it cannot read.

    It prepares inputs; pooling and normalisation are the model's.
    """

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: ProcessingKwargs | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Turn items into model inputs.

        Args:
            inputs: Items as ``messages_umarvel.ACCEPTED`` lists them, mixed as one likes.
            prompt: The instruction of all of them; the chat template writes it before the text and marks it, and the
                model leaves it out of pooling.
            processing_kwargs: As in the host, per call.

        Raises:
            ItemError: Names the position in ``inputs`` (inside ``encode``, in what was given to it) and what to do.
        """
        try:
            return self._preprocess(inputs, prompt, processing_kwargs, **kwargs)
        except ItemError as error:
            raise ItemError(_place(error.item, error.index), error.item, error.reason) from error
        except ValueError:
            # The processor refused the batch, and does not say for which item.
            for index, item in enumerate(inputs):
                try:
                    self._preprocess([item], prompt, processing_kwargs, **kwargs)
                except ValueError as error:
                    reason = f"the processor refuses it ({error}); change it or leave it out."
                    raise ItemError(_place(item, index), item, reason) from error
            raise

    @property
    def modalities(self) -> list[Any]:
        """What the host lets through to our check: sound too, which is refused there, by index.

        The host takes a greyscale array for sound.
        """
        return [*super().modalities, "audio"]

    def _preprocess(
        self, inputs: Sequence[Any], prompt: str | None, processing_kwargs: ProcessingKwargs | None, **kwargs: Any
    ) -> dict[str, Any]:
        metadata: list[dict[str, Any]] = []
        conversations = to_conversations(inputs, partial(self._read_video, metadata=metadata))
        if metadata:
            self._check_videos_fit_together(inputs, conversations)
            # Frames are sampled by now; a second sampling would drop some of them.
            given: dict[str, Any] = dict(processing_kwargs or {})
            given["video"] = {**given.get("video", {}), "do_sample_frames": False, "video_metadata": metadata}
            processing_kwargs = given  # type: ignore[assignment]  # what the host types as a TypedDict
        features = super().preprocess(conversations, prompt=prompt, processing_kwargs=processing_kwargs, **kwargs)
        # One count for every row, also where a processor counts rows with media only: mini-batches are cut by them.
        if metadata:
            features["num_videos_per_sample"] = torch.tensor([len(chat) for chat in _media(conversations, "video")])
        if "batch_num_images" in features:
            features["batch_num_images"] = torch.tensor([len(chat) for chat in _media(conversations, "image")])
        return features

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Embed a batch, or a mini-batch that was cut from one."""
        counts = [features[name] for name in ("num_images_per_sample", "num_videos_per_sample") if name in features]
        if counts and not any(count.any() for count in counts):
            # Only texts were cut out; what stands for their pictures are blanks to fill the row.
            features = {name: value for name, value in features.items() if not name.startswith("pixel_")}
        return super().forward(features, **kwargs)

    def _check_videos_fit_together(self, inputs: Sequence[Any], conversations: list[list[dict[str, Any]]]) -> None:
        """Refuse a batch whose videos the processor would pad, as the padding would change their vectors."""
        names = self.processor.video_processor.model_input_names
        if "video_grid_thw" in names:
            return
        videos, images = _media(conversations, "video"), _media(conversations, "image")
        lengths = {len(frames) for chat in videos for frames in chat}
        clash = "pixel_values" in names and any(images)
        if len(lengths) > 1 or clash or ("pixel_values" in names and len({len(chat) for chat in videos if chat}) > 1):
            index = next(at for at, chat in enumerate(videos) if chat)
            alone = not (clash and images[index])
            raise ItemError(
                index,
                inputs[index],
                f"{type(self.processor).__name__} stacks the videos of a batch, so they need one number of frames "
                f"(found {sorted(lengths)}){' and no picture beside them' if clash else ''}. "
                f"{'Encode videos apart, with batch_size=1.' if alone else 'Leave out its video or its pictures.'}",
            )

    def _apply_chat_template(  # type: ignore[override]  # every item is a chat of plain messages by now
        self,
        messages: list[list[dict[str, Any]]],
        modality_kwargs: dict[str, dict[str, Any]],
        common_kwargs: dict[str, Any],
        chat_template_kwargs: dict[str, Any],
    ) -> dict[str, Any]:
        """Write the chats by the checkpoint's template, always, and process them with their media.

        In one call, some processors write a chat with a video by a template of their own and sample its frames again.
        """
        template = {"chat_template": self.processor.chat_template, **chat_template_kwargs}
        texts = self.processor.apply_chat_template(messages, tokenize=False, **template)
        bos = self.processor.tokenizer.bos_token
        special = {"add_special_tokens": False} if bos and texts[0].startswith(bos) else {}
        return self.processor(
            text=texts,
            **{f"{kind}s": media for kind in ("image", "video") if any(media := _media(messages, kind))},
            text_kwargs={**special, **modality_kwargs["text"]},
            images_kwargs=modality_kwargs["image"],
            videos_kwargs=modality_kwargs["video"],
            common_kwargs=common_kwargs,
        )

    def _read_video(self, source: Any, metadata: list[dict[str, Any]]) -> np.ndarray:
        """Frames (F, H, W, 3) uint8 of a file, a list of pictures, an array, or ``{"array", "video_metadata"}``.

        A file may be told how it is sampled: ``{"path", "num_frames"}`` or ``{"path", "fps"}``.
        """
        sampler = getattr(self.processor, "video_processor", None)
        if sampler is None:
            raise ValueError(f"the processor of this checkpoint ({type(self.processor).__name__}) takes no video.")
        clock = None
        if (film := film_of(source)) is not None:
            frames, clock = _decode_video(*film, sampler)
        elif isinstance(source, dict):
            if not {"array"} <= set(source) <= {"array", "video_metadata"}:
                raise ValueError(
                    f"a video with the keys {sorted(source)}; give {{'array': frames, 'video_metadata': …}}, or "
                    "{'path': file, 'num_frames': …} or {'path': file, 'fps': …}."
                )
            frames, clock = np.asarray(source["array"]), source.get("video_metadata")
        else:
            frames = stack_frames(source) if isinstance(source, list | tuple) else np.asarray(source)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
            raise ValueError(
                f"a video of shape {frames.shape} and dtype {frames.dtype}; give uint8 frames of shape (F, H, W, 3)."
            )
        metadata.append(clock or film_clock(len(frames), FRAMES_PER_SECOND))
        return frames


def _place(item: Any, index: int) -> int:
    """The place of an item in the list that was given to the host's ``encode``, else ``index``.

    ``encode`` sorts its list and cuts it into batches before it asks for our check, and hands on no places. So, only
    where an item is refused, the list is looked up among the callers.
    """
    frame = sys._getframe(1)
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        given = frame.f_locals.get("inputs")
        if frame.f_code.co_name == "encode" and isinstance(given, list):
            return next((at for at, one in enumerate(given) if one is item), index)
    return index


def _media(messages: list[list[dict[str, Any]]], kind: str) -> list[list[Any]]:
    """The pictures or videos of each chat, in order."""
    return [
        [part[kind] for message in chat for part in message["content"] if part["type"] == kind] for chat in messages
    ]


def film_of(source: Any) -> tuple[Path, dict[str, float]] | None:
    """The file of a film, and ``num_frames`` or ``fps`` where it is told how it is sampled; None: it is no file.

    Raises:
        ValueError, FileNotFoundError: There is no such file, or what is told contradicts itself.
    """
    if isinstance(source, Path):
        return source, {}
    if not isinstance(source, dict) or "path" not in source:
        return None
    path, asked = existing_file(source["path"]), {name: one for name, one in source.items() if name != "path"}
    whole, rate = asked.get("num_frames", 1), asked.get("fps", 1.0)
    fits = type(whole) is int and whole > 0 and type(rate) in (int, float) and 0 < rate < float("inf")
    if len(asked) > 1 or not asked.keys() <= {"num_frames", "fps"} or not fits:
        raise ValueError(
            f"a film with {asked}; beside 'path' give either 'num_frames', a whole number, or 'fps', above 0."
        )
    return path, asked


def _decode_video(path: Path, asked: dict[str, float], sampler: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Decode, with PyAV, the frames that were asked for, else those that the checkpoint's video processor wants."""
    if av is None:
        raise ValueError(f"reading {str(path)!r} needs PyAV; install it (pip install av) or give decoded frames.")
    try:
        with av.open(str(path)) as container:
            # Frames that are asked for are counted as they are shown; the header may count others, too.
            clock, wanted = sampled_frames(container, asked, sampler, _frames_shown(container) if asked else None)
            frames = _seen(container, wanted)
            if len(frames) < len(set(wanted)):
                container.seek(0)
                clock, wanted = sampled_frames(container, asked, sampler, _frames_shown(container))
                frames = _seen(container, wanted)
    except Exception as error:  # PyAV's errors share no base class with those of the sampler
        raise ValueError(f"{str(path)!r} is no video that can be read ({error}); convert or leave it out.") from error
    return np.stack([frames[index] for index in wanted]), {**clock, "frames_indices": wanted}


def _seen(container: Any, wanted: list[int]) -> dict[int, np.ndarray]:
    """The frames at some places, each (H, W, 3)."""
    container.seek(0)
    frames = enumerate(container.decode(pictures_of(container)))
    return {index: frame.to_ndarray(format="rgb24") for index, frame in frames if index in wanted}


def _frames_shown(container: Any) -> int:
    """How many frames a film that stands at its beginning shows; its header also counts those that an edit has cut off.

    Raises:
        ValueError: It breaks off before the frames that its header counts.
    """
    stream, stored, shown = pictures_of(container), 0, 0
    for packet in container.demux(stream):
        stored += packet.size > 0  # the last one only flushes the decoder
        shown += len(packet.decode())
    if stored < stream.frames:
        raise ValueError(f"it breaks off after {stored} of {stream.frames} frames")
    return shown


def sampled_frames(
    container: Any, asked: dict[str, float], sampler: Any, total: int | None = None
) -> tuple[dict[str, Any], list[int]]:
    """The clock of an open film, and the places of the frames to be seen.

    With ``num_frames`` or ``fps`` they are spread as the reference spreads them (recipe.md §1.6): from the first to the
    last, an even number, by a rate at least 4 and at most 768; a film that has fewer gives all. Otherwise they are
    those that the video processor asks for.

    Args:
        total: How many frames there are; None: as the header says.
    """
    stream = pictures_of(container)
    if total is None:
        total = stream.frames or _frames_shown(container)  # some formats do not store their number
    if not total:
        raise ValueError("it holds no frames")
    clock = film_clock(total, float(stream.average_rate or SAMPLED_FRAMES_PER_SECOND))
    if asked:
        rated = clock["duration"] * asked.get("fps", 0)
        count = asked.get("num_frames") or min(max(rated, LEAST_FRAMES), MOST_FRAMES, total)
        even = max(2 * round(count / 2), 2)
        return clock, [round(at) for at in np.linspace(0, total - 1, min(even, total)).tolist()]
    settings = {name: getattr(sampler, name, None) for name in ("num_frames", "fps", "min_frames", "max_frames")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if not {"num_frames", "fps"} & set(settings):
        settings["fps"] = SAMPLED_FRAMES_PER_SECOND
    return clock, [int(at) for at in sampler.sample_frames(metadata=VideoMetadata(**clock), **settings)]


def pictures_of(container: Any) -> Any:
    """The first stream of pictures of a file, which may hold sound alone.

    Raises:
        ValueError: It does.
    """
    if not container.streams.video:
        raise ValueError("it holds no pictures")
    return container.streams.video[0]


def film_clock(frames: int, fps: float) -> dict[str, Any]:
    """The metadata of a film of so many frames, none of them left out."""
    return {"fps": fps, "total_num_frames": frames, "duration": frames / fps, "frames_indices": list(range(frames))}
