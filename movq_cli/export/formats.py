"""The layouts of consumers: which files they read, with which names, keys, shapes and numbers.

Each class is written from the consumer's own loading code, at the commit that its docstring names. Layouts hold C
channels, T latent frames, and heights H and widths W in latents.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch

from ..checkpoints.convert import load_pytorch
from ..errors import MovqError, MovqUsageError, option
from ..first_frame import LATENT, PNG
from ..int8 import dequantise, quantise
from ..options import EXPORTS, INT8
from ..targets import FACTOR
from .embeds import embeds_name
from .format import Content, Format, Item, video_of

_SCALE = ".scale.npy"


class Npy(Format):
    """NumPy arrays, NAME.npy: (C, T, H, W) as stored, unscaled. With a scale: a draw, multiplied by it.

    NAME.first_frame.npy has latents of the first frame, if there are any. In int8, NAME.scale.npy (C, T) has the scales.
    NumPy has no bf16: without another dtype it becomes fp32.
    """

    patched = False
    nested = True

    def first_frames(self) -> tuple[str, ...]:
        """Return the kind of latents."""
        return (LATENT,)

    def paths(self, item: Item) -> list[str]:
        """Return the paths of the arrays."""
        names = [item.name, *([f"{item.name}.first_frame"] if LATENT in item.first_frame else [])]
        return [f"{name}{suffix}" for name in names for suffix in self._suffixes]

    @property
    def _suffixes(self) -> tuple[str, ...]:
        return (".npy", _SCALE) if self.dtype == INT8 else (".npy",)

    def files(self, item: Item, content: Content) -> Iterator[bytes]:
        """Yield the arrays."""
        for stored in (content.stored, content.first):
            if stored is None:
                continue
            latents = stored.latents if self.scale is None else self.drawn(stored) * self.scale
            if self.dtype == INT8:
                numbers, scale = quantise(latents[None])
                yield from (_array(numbers[0]), _array(scale))
            else:
                latents = self.typed(latents)
                yield _array(latents.float() if latents.dtype == torch.bfloat16 else latents)

    @staticmethod
    def read(path: str) -> torch.Tensor:
        """Return the array, in fp32 if it is of int8 with its scales beside it."""
        latents = _read_array(path)
        if latents.dtype != torch.int8:
            return latents
        beside = path.removesuffix(".npy") + _SCALE
        if not os.path.exists(beside):
            raise MovqError(f"is of int8, and its scales are not beside it, in {os.path.basename(beside)}", path)
        scale = _read_array(beside)
        if scale.shape != latents.shape[:2]:
            raise MovqError(
                f"has scales {list(scale.shape)} beside it, where {list(latents.shape[:2])} are needed", path
            )
        return dequantise(latents, scale)


class CogVideoFinetune(Format):
    """The cache of CogVideo's own finetuning (zai-org/CogVideo, finetune/datasets, at 7a1af715).

    cache/video_latent/MODEL/FxHxW/NAME.safetensors has `encoded_video` (z, T, H, W): a draw times the scaling factor,
    in the dtype of training. It stacks items, looks them up by the stem of their video, and asks that videos exist. It
    makes text embeddings where they are missing. For image-to-video it reads the pictures that `images.txt` lists.
    """

    needs_captions = needs_videos = scaled = one_shape = True
    _STEP = 2 * FACTOR
    _EMBEDS = "cache/prompt_embeddings/"
    _MODELS: Mapping[str, str] = {
        "cogvideox-2b": "cogvideox-t2v",
        "cogvideox-5b": "cogvideox-t2v",
        "cogvideox-5b-i2v": "cogvideox-i2v",
        "cogvideox1.5-5b": "cogvideox1.5-t2v",
        "cogvideox1.5-5b-i2v": "cogvideox1.5-i2v",
    }

    def check(self, items: Iterable[Item]) -> None:
        """Raise MovqUsageError without the name of a model, which is a folder of the cache."""
        if self.target is None:
            raise MovqUsageError(f"name the model to train: {', '.join(self._MODELS)}", option="target")

    def refusal(self, item: Item) -> str:
        """Return why the trainer cannot read an item; "" if it can."""
        if (item.frames - 1) % self._STEP:
            return f"has {item.frames} frames, and the trainer takes 1 + a multiple of {self._STEP}"
        return _lacks(item, self.first_frames())

    def first_frames(self) -> tuple[str, ...]:
        """Return the picture, for image-to-video."""
        return (PNG,) if self.from_image else ()

    def paths(self, item: Item) -> list[str]:
        """Return the paths of the latents, of the first frame, and of the embeddings of the prompt."""
        assert self.target is not None
        return [
            f"cache/video_latent/{self._MODELS[self.target]}/{_resolution(item)}/{item.name}.safetensors",
            *([_image_of(item)] if self.from_image else []),
            *([f"{self._EMBEDS}{embeds_name(item.caption)}"] if item.has_embeds else []),
        ]

    def is_shared(self, path: str) -> bool:
        """Return True for embeddings, which are named by their prompt."""
        return path.startswith(self._EMBEDS)

    def files(self, item: Item, content: Content) -> Iterator[bytes]:
        """Yield the latents, the picture for image-to-video, and the embeddings if they are there."""
        from safetensors.torch import save

        assert self.scale is not None
        yield save({"encoded_video": self.typed(self.drawn(content.stored) * self.scale)})
        if content.picture is not None:
            yield content.picture
        if content.embeds is not None:
            yield save({"prompt_embedding": content.embeds})

    @staticmethod
    def read(path: str) -> torch.Tensor:
        """Return `encoded_video`."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return cast(torch.Tensor, file.get_tensor("encoded_video"))
        except (SafetensorError, OSError) as error:
            raise MovqError(f"has no encoded_video ({error})", path) from None

    def lists(self, items: list[Item]) -> dict[str, str]:
        """Return prompts and videos, and for image-to-video pictures, one a line."""
        lists = {"prompt.txt": _lines(item.caption for item in items), "videos.txt": _lines(map(video_of, items))}
        return lists | ({"images.txt": _lines(map(_image_of, items))} if self.from_image else {})

    def usage(self, items: list[Item], folder: str) -> str:
        """Return the arguments of its finetune script."""
        assert self.target is not None
        return (
            f"--data_root {folder} --model_name {self._MODELS[self.target]} --train_resolution {_resolution(items[0])} "
            "--caption_column prompt.txt --video_column videos.txt"
            + (" --image_column images.txt" if self.from_image else "")
        )


class Factory(Format):
    """The tensors that cogvideox-factory reads with --load_tensors (a-r-r-o-w, training/cogvideox/dataset.py, at 223add1a).

    video_latents/NAME.pt is a tensor (2z, T, H, W), moments, unscaled: it draws and scales. prompt_embeds/NAME.pt is one
    of (226, 4096). For image-to-video, image_latents/NAME.pt is (2z, 1, H, W), moments of the first frame. Names end at
    their first dot. The transformer of 1.5 takes latent frames in pairs.
    """

    needs_captions = needs_embeds = needs_moments = True

    def key(self, name: str) -> str:
        """Return the name up to its first dot."""
        return name.split(".")[0]

    def check(self, items: Iterable[Item]) -> None:
        """Raise MovqUsageError for an odd number of latents where they are taken in pairs."""
        if self.target is None or not self.target.startswith("cogvideox1.5"):
            return
        for item in items:
            if item.latents % 2:
                step = (item.frames - 1) // max(1, item.latents - 1)
                raise MovqUsageError(
                    f"{self.target} takes latents in pairs, and {item.id} has {item.latents}: encode "
                    f"{item.frames - step} or {item.frames + step} frames",
                    option="to",
                )

    def refusal(self, item: Item) -> str:
        """Return why the trainer cannot read an item; "" if it can."""
        return _lacks(item, self.first_frames())

    def first_frames(self) -> tuple[str, ...]:
        """Return the latents, for image-to-video."""
        return (LATENT,) if self.from_image else ()

    def paths(self, item: Item) -> list[str]:
        """Return the paths of moments, embeddings, and for image-to-video moments of the first frame."""
        folders = ["video_latents", "prompt_embeds", *(["image_latents"] if self.from_image else [])]
        return [f"{folder}/{self.key(item.name)}.pt" for folder in folders]

    def files(self, item: Item, content: Content) -> Iterator[bytes]:
        """Yield moments, embeddings, and for image-to-video moments of the first frame."""
        yield _saved(self.typed(content.stored.latents))
        yield _saved(content.embeds)
        if content.first is not None:
            yield _saved(self.typed(content.first.latents))

    @staticmethod
    def read(path: str) -> torch.Tensor:
        """Return the tensor."""
        return _tensor(load_pytorch(path), path)

    def lists(self, items: list[Item]) -> dict[str, str]:
        """Return prompts and videos, one a line."""
        named = [replace(item, name=self.key(item.name)) for item in items]
        return {"prompts.txt": _lines(item.caption for item in named), "videos.txt": _lines(map(video_of, named))}

    def usage(self, items: list[Item], folder: str) -> str:
        """Return the arguments of its training script."""
        # It counts the frames of an even number of latents in another way.
        shapes = [
            (
                item.frames if item.latents % 2 else (item.frames - 1) // (item.latents - 1) * item.latents,
                item.height,
                item.width,
            )
            for item in items
        ]
        frames, heights, widths = (" ".join(map(str, sorted(set(sides)))) for sides in zip(*shapes, strict=True))
        return (
            f"--data_root {folder} --load_tensors --caption_column prompts.txt --video_column videos.txt "
            f"--frame_buckets {frames} --height_buckets {heights} --width_buckets {widths}"
        )


class Finetrainers(Format):
    """The precomputed data of finetrainers (a-r-r-o-w, finetrainers/data/precomputation.py, at f476c371).

    latent-I.pt is {"latents": (1, T, 2z, H, W)}, moments, unscaled, with frames in front of channels. condition-I.pt is
    {"encoder_hidden_states": (1, 226, 4096)}. I counts from 0 without gaps.
    """

    needs_captions = needs_embeds = needs_moments = True
    _FOLDER = "finetrainers-precomputed-data"

    def check(self, items: Iterable[Item]) -> None:
        """Raise MovqUsageError for image-to-video."""
        if self.from_image:
            raise MovqUsageError(
                f"{self.target} takes images, and this trainer trains CogVideoX from text alone", option="to"
            )

    def paths(self, item: Item) -> list[str]:
        """Return the paths of moments and embeddings."""
        return [f"{self._FOLDER}/{kind}-{item.number}.pt" for kind in ("latent", "condition")]

    def files(self, item: Item, content: Content) -> Iterator[bytes]:
        """Yield moments and embeddings."""
        assert content.embeds is not None
        yield _saved({"latents": self.typed(content.stored.latents.transpose(0, 1)[None])})
        yield _saved({"encoder_hidden_states": content.embeds[None]})

    @staticmethod
    def read(path: str) -> torch.Tensor:
        """Return `latents`, with channels in front of frames."""
        held = load_pytorch(path)
        latents = _tensor(held.get("latents") if isinstance(held, dict) else None, path)
        return latents[0].transpose(0, 1) if latents.dim() == 5 else latents

    def usage(self, items: list[Item], folder: str) -> str:
        """Return the arguments of its training script."""
        return f"--enable_precomputation --precomputation_reuse --precomputation_dir {folder}"


FORMATS: Mapping[str, type[Format]] = dict(zip(EXPORTS, (CogVideoFinetune, Finetrainers, Factory, Npy), strict=True))


def _array(tensor: torch.Tensor) -> bytes:
    """Return the file of an array as NumPy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, tensor.numpy(), allow_pickle=False)
    return buffer.getvalue()


def _read_array(path: str) -> torch.Tensor:
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise MovqError(f"is not an array that NumPy reads ({error})", path) from None


def _tensor(value: Any, path: str) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise MovqError("holds no tensor of latents in the place where this trainer looks for it", path)
    return value


def _saved(value: Any) -> bytes:
    """Return a tensor or a dict of them as torch.save writes it."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _lines(texts: Iterable[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def _image_of(item: Item) -> str:
    """Return the path of an item's first frame, where the trainer also looks for it without a list."""
    return f"first_frames/{item.name}.png"


def _lacks(item: Item, kinds: Iterable[str]) -> str:
    """Return that an item lacks a first frame of one of these kinds; "" if it does not."""
    for kind in kinds:
        if kind not in item.first_frame:
            what = option("first_frame", kind)
            return f"has no first frame ({kind}): the same batch-encode with {what} adds it, and encodes nothing again"
    return ""


def _resolution(item: Item) -> str:
    return f"{item.frames}x{item.height}x{item.width}"
