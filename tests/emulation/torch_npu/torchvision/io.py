"""Reading of images and videos."""

from __future__ import annotations

import enum

from torchvision import refusing


class ImageReadMode(enum.Enum):
    """Named in signatures."""

    UNCHANGED = 0


decode_image = refusing("io.decode_image")
read_video = refusing("io.read_video")
