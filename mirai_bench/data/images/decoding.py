"""The one place that opens image files, and turns what they hold into 8-bit RGB.

The pixels are those of the file: an EXIF orientation is not applied, as torchvision does not either,
and of an animation the first frame counts. Transparency is left out.
"""

from __future__ import annotations

import stat
import struct
from pathlib import Path

import numpy as np
from PIL import Image, WebPImagePlugin  # noqa: F401  (which registers the format)

# Endings of the names of image files.
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm"}
# The formats behind these endings, whichever of them a file's name says. Pillow would choose among
# all that it knows, by a file's content: for PostScript it runs Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM")
MOST_PIXELS = 178_956_970  # from which on Pillow refuses an image as a bomb
# What reading a corrupt image may raise.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: str | Path) -> Image.Image:
    """Returns the image of a file as 8-bit RGB. Raises one of UNREADABLE if it is none."""
    if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
        raise ValueError("it is no regular file")
    with Image.open(path, formats=FORMATS) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} pixels are more than {MOST_PIXELS:,}")
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a decoded image as 8-bit RGB. Raises ValueError if its values have no known range.

    16-bit grey levels are scaled. Pillow's own conversion would make white of all above 255.
    """
    if image.mode.startswith("I"):  # I;16 and its kinds, or I, which holds 16 bits, too
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ValueError(f"grey levels {levels.min()} … {levels.max()} are not of 16 bits")
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point grey levels have no known range")
    return image.convert("RGB")
