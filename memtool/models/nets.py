"""Our own networks: small ones for the digits and for SVHN, and ResNets for small images."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:  # seconds to import, and only the ResNets need it
    from torchvision.models.resnet import BasicBlock, Bottleneck


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
    """Four convolutions (16, 16, 32, 32 channels) and three linear layers (128, 64, num_classes).

    Takes images (n, channels, image_size, image_size). The two poolings halve the image, rounding
    down. The layers block1 ... block6 are all cuts.
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


def cnn(
    num_classes: int = 10, channels: int = 3, image_size: int = 32, width: int = 32
) -> nn.Sequential:
    """Six convolutions (width, width, 2, 2, 4, 4 times width channels) and three linear layers
    (8 times width, 4 times width, num_classes).

    Takes images (n, channels, image_size, image_size); a pooling after every second convolution
    halves them, rounding down. The layers block1 ... block8 are all cuts. Gupta, Saha and Rai
    (2024) train "a customized CNN" on SVHN without giving its sizes: these are ours.
    """
    return nn.Sequential(
        OrderedDict(
            block1=_convolution(channels, width),
            block2=_convolution(width, width, pool=True),
            block3=_convolution(width, 2 * width),
            block4=_convolution(2 * width, 2 * width, pool=True),
            block5=_convolution(2 * width, 4 * width),
            block6=_convolution(4 * width, 4 * width, pool=True),
            flatten=nn.Flatten(),
            block7=_linear(4 * width * (image_size // 8) ** 2, 8 * width),
            block8=_linear(8 * width, 4 * width),
            fc=nn.Linear(4 * width, num_classes),
        )
    )


def resnet18(num_classes: int = 10, channels: int = 3, width: int = 64) -> nn.Sequential:
    """ResNet-18 for small images of any size, with `width` channels in the first stage."""
    from torchvision.models.resnet import BasicBlock

    return _resnet(BasicBlock, [2, 2, 2, 2], num_classes, channels, width)


def resnet34(num_classes: int = 10, channels: int = 3, width: int = 64) -> nn.Sequential:
    """ResNet-34 for small images of any size, with `width` channels in the first stage."""
    from torchvision.models.resnet import BasicBlock

    return _resnet(BasicBlock, [3, 4, 6, 3], num_classes, channels, width)


def resnet50(num_classes: int = 10, channels: int = 3, width: int = 64) -> nn.Sequential:
    """ResNet-50 for small images of any size, with 4 * `width` channels in the first stage."""
    from torchvision.models.resnet import Bottleneck

    return _resnet(Bottleneck, [3, 4, 6, 3], num_classes, channels, width)


def _resnet(
    block: "type[BasicBlock | Bottleneck]",
    blocks: list[int],
    num_classes: int,
    channels: int,
    width: int,
) -> nn.Sequential:
    """A ResNet (He et al. 2016) with the stem that is usual for CIFAR: a 3x3 convolution of stride
    1 and no pooling. Its tensors have the names of torchvision's."""
    inputs = [width, *(block.expansion * width * 2**stage for stage in range(4))]
    model = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, width, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            layer1=_stage(block, inputs[0], width, blocks[0], stride=1),
            layer2=_stage(block, inputs[1], 2 * width, blocks[1], stride=2),
            layer3=_stage(block, inputs[2], 4 * width, blocks[2], stride=2),
            layer4=_stage(block, inputs[3], 8 * width, blocks[3], stride=2),
            avgpool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(inputs[4], num_classes),
        )
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):  # He et al. (2015), as torchvision does
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


def _stage(
    block: "type[BasicBlock | Bottleneck]", inputs: int, width: int, count: int, stride: int
) -> nn.Sequential:
    """`count` residual blocks, the first of which takes `inputs` channels and has the stride."""
    outputs = width * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )
    rest = [block(outputs, width) for _ in range(count - 1)]
    return nn.Sequential(block(inputs, width, stride, shortcut), *rest)
