"""A processor of transformers where a tokenizer is expected: conversations with images become token ids."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpo.errors import DataError
from gpo.images.album import Album
from gpo.images.tokens import PLACES, image_tokens, spelled
from gpo.storage.hub import hub_options
from gpo.storage.weights import first_line

PARTS = ("text", "image")  # of a message's content
KEPT = 1 << 27  # bytes of images as the processor made them
LOGGER = logging.getLogger("gpo.images")


class ImageTokenizer:
    """The tokenizer inside of a processor, with images in conversations and their tokens (`tokens.py`) in ids.

    What it does not know it asks of the tokenizer. Images are kept in the `album`.
    """

    def __init__(self, processor: Any, album: Album | None = None) -> None:
        self.processor = processor
        self.text: Any = processor.tokenizer
        self.album = Album() if album is None else album
        self._inputs: dict[str, dict[str, Any]] = {}  # of the last images, by name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "text":
            raise AttributeError(name)
        return getattr(self.text, name)

    def __len__(self) -> int:
        return len(self.text)

    def __deepcopy__(self, memo: object) -> ImageTokenizer:
        return self

    @property
    def chat_template(self) -> Any:
        return self.processor.chat_template or self.text.chat_template

    @property
    def placeholder(self) -> int:
        """The id that the processor has in place of each token of an image."""
        return int(self.processor.image_token_id)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = False,
        **arguments: Any,
    ) -> list[int]:
        """Token ids of a conversation, the tokens of images among them.

        Args:
            tokenize, return_dict: as tokenizers have them, which are asked alike.
            arguments: what the template is given beside the messages.

        Raises:
            DataError: an image cannot be read, or the template has no place for one.
        """
        turns, names = [], []
        for message in messages:
            parts = message["content"]
            parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
            names += [self.album.add(part["image"]) for part in parts if part["type"] == "image"]
            told = [{"type": "image"} if part["type"] == "image" else dict(part) for part in parts]
            turns.append({"role": message["role"], "content": told})
        text = self.processor.apply_chat_template(
            turns,
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **arguments,
        )
        if not names:
            ids: list[int] = self.text.encode(text, add_special_tokens=False)
            return ids
        # As transformers has it, for tokenizers and for processors.
        begins = self.text.bos_token is not None and text.startswith(self.text.bos_token)
        ids = self._ids(text, names, special=not begins)
        places = [index for index, token in enumerate(ids) if token == self.placeholder]
        tokens = [token for name in names for token in image_tokens(name, self.count(name))]
        if len(places) != len(tokens):
            raise self._misplaced(f"{len(names)} images of {len(tokens)} tokens, and its prompt {len(places)} places")
        for index, token in zip(places, tokens, strict=True):
            ids[index] = token
        return ids

    def decode(self, token_ids: Any, **options: Any) -> str:
        """Text with one image token for each image."""
        ids = token_ids if isinstance(token_ids, int) else spelled(token_ids, self.placeholder)
        text: str = self.text.decode(ids, **options)
        return text

    def save_pretrained(self, path: Any) -> Any:
        """Write the processor, the tokenizer with it."""
        return self.processor.save_pretrained(path)

    def inputs(self, name: str) -> dict[str, Any]:
        """What the model is given of an image alone, as tensors, `input_ids` (1, T) of its placeholders included."""
        if name not in self._inputs:
            told = self.processor(
                text=[self.processor.image_token],
                images=[[self.album.open(name)]],
                return_tensors="pt",
                return_mm_token_type_ids=True,
                add_special_tokens=False,
            )
            self._inputs[name] = dict(told)
            while len(self._inputs) > 1 and self._size() > KEPT:
                del self._inputs[next(iter(self._inputs))]
        return self._inputs[name]

    def _size(self) -> int:
        return sum(int(each.nbytes) for inputs in self._inputs.values() for each in inputs.values())

    def count(self, name: str) -> int:
        """How many tokens an image has.

        Raises:
            DataError: too many.
        """
        count = int((self.inputs(name)["input_ids"] == self.placeholder).sum())
        if count > 1 << PLACES:
            raise DataError(f"The image {name} has {count} tokens; expected at most {1 << PLACES}. Make it smaller.")
        return count

    def _ids(self, text: str, names: Sequence[str], special: bool) -> list[int]:
        images = [self.album.open(name) for name in names]
        try:
            told = self.processor(text=[text], images=[images], add_special_tokens=special)
        except ValueError as error:
            raise self._misplaced(f"{len(names)} images ({first_line(error)})") from error
        return [int(token) for token in told["input_ids"][0]]

    def _misplaced(self, what: str) -> DataError:
        return DataError(
            f"The conversation has {what}. Does the chat template show every image, and does no text hold "
            f"{self.processor.image_token!r}?"
        )


def load_processor(source: str, revision: str | None = None) -> Any:
    """The processor of a vision-language model or beside its adapters; None elsewhere, or if it cannot be loaded."""
    where = {"revision": revision, "trust_remote_code": False, **hub_options(source)}
    if not _has_processor(source, where):
        return None
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(source, **where)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        LOGGER.warning("Images are refused: %s has no processor that can be loaded (%s).", source, first_line(error))
        return None
    return processor if hasattr(processor, "image_token_id") and hasattr(processor, "image_processor") else None


def _has_processor(source: str, where: Mapping[str, Any]) -> bool:
    from transformers import AutoConfig

    if Path(source).is_dir():
        return any((Path(source) / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    try:
        return hasattr(AutoConfig.from_pretrained(source, **where), "vision_config")
    except (OSError, ValueError, KeyError):  # adapters, say; who loads the model tells of it
        return False


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer of transformers inside of one of images."""
    return tokenizer.text if isinstance(tokenizer, ImageTokenizer) else tokenizer


def keep_images(tokenizer: Any, directory: Path) -> None:
    """Let a tokenizer of images keep them in a directory from now on; it is made with the first image."""
    if isinstance(tokenizer, ImageTokenizer):
        tokenizer.album.directory = directory


def shows_images(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a conversation has images.

    Raises:
        DataError: content has a part that is neither a text nor an image.
    """
    found = False
    for message in messages:
        for part in () if isinstance(message["content"], str) else message["content"]:
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in PARTS or kind not in part:
                raise DataError(
                    f"A message has the part {str(part)[:80]!r}; expected {{'type': 'text', 'text': ...}} or "
                    "{'type': 'image', 'image': a path or an image of Pillow}."
                )
            found = found or kind == "image"
    return found
