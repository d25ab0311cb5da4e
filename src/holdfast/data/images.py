"""Image files: opened within limits, hashed, and turned into tensors when a batch needs them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import Field

from holdfast.config import Settings
from holdfast.data.schema import Image
from holdfast.errors import UserError


class ImageSettings(Settings):
    """What an image file may be."""

    max_pixels: int = Field(default=16_777_216, gt=0)
    """Width times height above which a file is refused before it is decoded."""
    formats: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
    """Accepted file formats, by Pillow's names."""


def sha256(content: bytes) -> str:
    """The hash by which an image is known.

    >>> sha256(b"")[:8]
    'e3b0c442'
    """
    return hashlib.sha256(content).hexdigest()


def refer(path: str | Path) -> Image:
    """The record of an image file, with the hash of its bytes; `UserError` when there is no such file."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"no image file at {file}; image paths are taken from the folder of the data file")
    return Image(path=str(file), sha256=sha256(file.read_bytes()))


def keep(value: Any, folder: str | Path) -> Image:
    """The record of an image that lies inside a data set, written to `folder` under its hash.

    value: bytes, a Pillow image, or the `{"bytes", "path"}` of the `datasets` library.
    """
    content, name = _content(value)
    target = Path(folder) / f"{sha256(content)}{name}"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside and renamed, so that none is there in part; several processes may write the same one at once.
        partial = target.with_name(f"{target.name}.{uuid4().hex}.partial")
        partial.write_bytes(content)
        partial.replace(target)
    return Image(path=str(target), sha256=sha256(content))


def _content(value: Any) -> tuple[bytes, str]:
    """The bytes of an embedded image and the ending of its file name."""
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return value["bytes"], Path(str(value.get("path") or "")).suffix or ".png"
    if isinstance(value, bytes):
        return value, ".png"
    if hasattr(value, "save"):
        import io

        stream = io.BytesIO()
        value.save(stream, format="PNG")
        return stream.getvalue(), ".png"
    raise UserError(f"an image must be a path, bytes or a Pillow image, not {type(value).__name__}")


def open_image(image: Image, settings: ImageSettings) -> Any:
    """The picture as an RGB Pillow image, after its size, format and hash were checked."""
    try:
        from PIL import Image as Pillow
        from PIL import UnidentifiedImageError
    except ImportError as error:
        raise UserError('images need Pillow: pip install "holdfast[vision]"') from error
    content = _read(image)
    import io

    try:
        picture = Pillow.open(io.BytesIO(content), formats=settings.formats)
        pixels = picture.width * picture.height
        if pixels > settings.max_pixels:
            raise UserError(
                f"image {image.path} has {picture.width} x {picture.height} pixels, more than the "
                f"{settings.max_pixels} allowed; shrink it or raise max_pixels"
            )
        return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Pillow.DecompressionBombError) as error:
        known = ", ".join(settings.formats)
        raise UserError(f"image {image.path} cannot be read as {known}: {error}") from error


def _read(image: Image) -> bytes:
    file = Path(image.path)
    if not file.is_file():
        raise UserError(f"no image file at {file}; put it there or correct the row")
    content = file.read_bytes()
    if image.sha256 and sha256(content) != image.sha256:
        raise UserError(f"image {file} has another hash than the one recorded; restore it or read again")
    return content


@dataclass(frozen=True)
class Pixels:
    """An image of an encoded row; its tensors are made when a batch is, so that a data set fits in memory."""

    image: Image
    processor: Any
    settings: ImageSettings

    def open(self) -> Any:
        """The checked Pillow image."""
        return open_image(self.image, self.settings)

    def tensors(self) -> dict[str, Any]:
        """What the model wants beside ids: `pixel_values` (1, C, H, W) or patches, and sizes if any."""
        return dict(self.processor.image_processor(images=[self.open()], return_tensors="pt"))
