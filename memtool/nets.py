"""Our own networks."""

from collections import OrderedDict

from torch import nn


def _convolution(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    block = nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            norm=nn.BatchNorm2d(outputs),
            relu=nn.ReLU(inplace=True),
        )
    )
    if pool:
        block.add_module("pool", nn.MaxPool2d(2))
    return block


def _linear(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            linear=nn.Linear(inputs, outputs, bias=False),
            norm=nn.BatchNorm1d(outputs),
            relu=nn.ReLU(inplace=True),
        )
    )


def digits_cnn(num_classes: int = 10, channels: int = 1, image_size: int = 8) -> nn.Sequential:
    """Four convolutions (16, 16, 32, 32 channels) and three linear layers (128, 64, classes).

    For images of (channels, image_size, image_size), image_size a multiple of 4 or rounded down
    to one by the two poolings; its layers block1 ... block6 and fc are all cuts.
    """
    return nn.Sequential(
        OrderedDict(
            block1=_convolution(channels, 16),
            block2=_convolution(16, 16, pool=True),
            block3=_convolution(16, 32),
            block4=_convolution(32, 32, pool=True),
            flatten=nn.Flatten(),
            block5=_linear(32 * (image_size // 4) ** 2, 128),
            block6=_linear(128, 64),
            fc=nn.Linear(64, num_classes),
        )
    )
