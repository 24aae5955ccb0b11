"""The networks of the recipes, as torch modules; images come as (samples, channels, height, width) in [0, 1]."""

from torch import Tensor, nn
from torch.nn import functional


def digits_cnn() -> nn.Sequential:
    """Build a small CNN for 8×8 digits with batch normalisation; its third convolution has 288 rows."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def lenet5() -> nn.Sequential:
    """Build LeNet-5 for 28×28 digits (LeCun et al., Proc. IEEE 86, 1998, section II.B), with ReLU and max pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def vgg5() -> nn.Sequential:
    """Build a 5-layer VGG for 32×32 colour images: four 3×3 convolutions with batch normalisation, one linear."""
    return nn.Sequential(
        *_convolution(3, 64),
        nn.MaxPool2d(2),
        *_convolution(64, 128),
        nn.MaxPool2d(2),
        *_convolution(128, 256),
        *_convolution(256, 256),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(4096, 10),
    )


def resnet20() -> nn.Sequential:
    """Build ResNet-20 for 32×32 colour images (He et al., CVPR 2016, section 4.2), shortcuts by 1×1 convolutions."""
    blocks: list[nn.Module] = []
    channels = 16
    for wider, stride in ((16, 1), (32, 2), (64, 2)):
        blocks += [ResidualBlock(channels, wider, stride), ResidualBlock(wider, wider), ResidualBlock(wider, wider)]
        channels = wider
    return nn.Sequential(*_convolution(3, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with batch normalisation beside a shortcut.

    Parameters
    ----------
    channels, wider
        Channels that come in and go out.
    stride
        Of the first convolution and the shortcut.
    """

    def __init__(self, channels: int, wider: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *_convolution(channels, wider, stride),
            nn.Conv2d(wider, wider, 3, padding=1, bias=False),
            nn.BatchNorm2d(wider),
        )
        self.shortcut = (
            nn.Identity()
            if channels == wider
            else nn.Sequential(nn.Conv2d(channels, wider, 1, stride=stride, bias=False), nn.BatchNorm2d(wider))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Map (n, channels, height, width) to (n, wider, height / stride, width / stride)."""
        return functional.relu(self.shortcut(images) + self.residual(images))


def _convolution(channels: int, wider: int, stride: int = 1) -> tuple[nn.Module, ...]:
    """One 3×3 convolution with batch normalisation and ReLU."""
    convolution = nn.Conv2d(channels, wider, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(wider), nn.ReLU()
