"""Masks that take little memory."""

import zlib
from dataclasses import dataclass

import numpy as np

__all__ = ["PixelSet"]


@dataclass(frozen=True)
class PixelSet:
    """A mask that takes kilobytes where the array takes a megabyte."""

    packed: bytes
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: np.ndarray) -> "PixelSet":
        """Pack a mask, shape (ny, nx)."""
        return cls(zlib.compress(np.packbits(mask).tobytes(), level=1), mask.shape)

    def mask(self) -> np.ndarray:
        """Unpack the mask, shape (ny, nx)."""
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        return np.unpackbits(bits, count=self.shape[0] * self.shape[1]).reshape(self.shape).astype(bool)
