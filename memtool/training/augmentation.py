"""Augmentation of uint8 images on their device, drawn from the seed and the epoch alone."""

import torch
from torch import Tensor
from torch.nn import functional


class CropFlip:
    """How each of n training images is shifted and mirrored in one epoch.

    `shifts` are the first row and column of each crop from the image with a black border of
    `border` pixels, int64 (2, n) in [0, 2 border]; the crop has the size of the image. `mirrored`,
    bool (n,), says which are mirrored left to right. The border is an eighth of `side`, the shorter
    side of the images, in pixels: 4 for 32x32.
    """

    def __init__(self, examples: int, side: int, device: torch.device) -> None:
        self.border = side // 8
        self.shifts = torch.full((2, examples), self.border, device=device)
        self.mirrored = torch.zeros(examples, dtype=torch.bool, device=device)

    def draw(self) -> None:
        """Draw from PyTorch's global generator of the CPU, whatever the device of the images is.
        The tensors stay the same: a CUDA graph reads them."""
        examples = len(self.mirrored)
        self.shifts.copy_(torch.randint(2 * self.border + 1, (2, examples)))
        self.mirrored.copy_(torch.rand(examples) < 0.5)

    def __call__(self, images: Tensor, indices: Tensor) -> Tensor:
        """The images at `indices`, uint8 (b, channels, height, width), shifted and mirrored.

        >>> crops = CropFlip(examples=1, side=8, device=torch.device("cpu"))
        >>> crops.shifts[:], crops.mirrored[:] = torch.tensor([[1], [0]]), True
        >>> images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8)
        >>> crops(images, torch.tensor([0]))[0, 0, :2]
        tensor([[ 7,  6,  5,  4,  3,  2,  1,  0],
                [15, 14, 13, 12, 11, 10,  9,  0]], dtype=torch.uint8)
        """
        *_, height, width = images.shape
        top, left = self.shifts[:, indices, None]
        rows = top + torch.arange(height, device=images.device)
        columns = torch.arange(width, device=images.device).expand(len(images), width)
        columns = left + torch.where(self.mirrored[indices, None], columns.flip(1), columns)
        bordered = functional.pad(images, (self.border,) * 4)
        which = torch.arange(len(images), device=images.device)
        crops = bordered[which[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2)
