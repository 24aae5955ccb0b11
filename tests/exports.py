"""Small networks with random weights, through the exporters that people use: torch's two, and scikit-learn's."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn

Array = npt.NDArray[Any]
Exporter = Literal["torchscript", "dynamo"]

EXPORTERS: tuple[Exporter, ...] = ("torchscript", "dynamo")


# -- networks -------------------------------------------------------------------------------------------------------


def conv(channels: int, results: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution and batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(channels, results, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(results)
    )


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip, which has one of its own where the shape changes."""

    def __init__(self, channels: int, results: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(channels, results, 3, stride), nn.ReLU(), conv(results, results))
        self.skip = nn.Identity() if stride == 1 else conv(channels, results, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = torch.relu(self.body(x) + self.skip(x))
        return y


class Residual(nn.Module):
    """A residual network for 3x16x16 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.blocks = nn.Sequential(ResidualBlock(8, 8, 1), ResidualBlock(8, 16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return y


class SqueezeExcite(nn.Module):
    """Channels weighted by what all of the image says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x * self.gate(x)
        return y


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, squeeze and excite, projection, with a skip."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, expanded, 1),
            nn.Hardswish(),
            conv(expanded, expanded, 5, groups=expanded),
            nn.Hardswish(),
            SqueezeExcite(expanded),
            conv(expanded, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.body(x)
        return y


class Mobile(nn.Module):
    """An inverted-residual network for 3x16x16 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 8, 3, 2), nn.Hardswish())
        self.blocks = nn.Sequential(InvertedResidual(8, 24), InvertedResidual(8, 32))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.blocks(self.stem(x)))
        return y


class UNet(nn.Module):
    """Down and up again, with skips between levels of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.outer = nn.Sequential(conv(1, 6), nn.ReLU())
        self.middle = nn.Sequential(conv(6, 12), nn.ReLU())
        self.inner = nn.Sequential(conv(12, 24), nn.ReLU())
        self.up_middle = nn.ConvTranspose2d(24, 12, 2, 2)
        self.join_middle = nn.Sequential(conv(24, 12), nn.ReLU())
        self.up_outer = nn.ConvTranspose2d(12, 6, 3, 2, padding=1, output_padding=1)
        self.join_outer = nn.Sequential(conv(12, 6), nn.ReLU(), nn.Conv2d(6, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        outer = self.outer(x)
        middle = self.middle(nn.functional.max_pool2d(outer, 2))
        inner = self.inner(nn.functional.avg_pool2d(middle, 2))
        joined = self.join_middle(torch.cat([middle, self.up_middle(inner)], 1))
        y: Tensor = self.join_outer(torch.cat([outer, self.up_outer(joined)], 1))
        return y


class Transformer(nn.Module):
    """A transformer encoder over sequences of 12 vectors of 16."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, activation="gelu")
        self.embed = nn.Linear(16, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(self.embed(x)).mean(1))
        return y


TORCH_NETWORKS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 16, 16)),
    "mobile": (Mobile, (3, 16, 16)),
    "unet": (UNet, (1, 16, 16)),
    "transformer": (Transformer, (12, 16)),
}
"""Network and the shape of one of its inputs, by name."""


def network(name: str) -> nn.Module:
    """A network in evaluation mode; its weights and running statistics are random with a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = TORCH_NETWORKS[name][0]().eval()
        for parameter in module.parameters():
            if parameter.ndim == 1:  # attention's biases start at zero
                parameter.data += 0.1 * torch.randn_like(parameter)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = 0.2 * torch.randn(part.num_features)
                part.running_var = 0.5 + torch.rand(part.num_features)
    return module


def sample(name: str, batch: int = 2) -> Array:
    """Inputs of a network of `TORCH_NETWORKS`."""
    shape = (batch, *TORCH_NETWORKS[name][1])
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


# -- exporters ------------------------------------------------------------------------------------------------------


@cache
def torch_export(name: str, exporter: Exporter) -> onnx.ModelProto:
    """A network of `TORCH_NETWORKS` as a model of input ``x`` with an open batch. Shared, not to be modified."""
    module, example = network(name), torch.from_numpy(sample(name))
    file = io.BytesIO()
    with _quiet(), torch.no_grad():
        if exporter == "dynamo":
            batch = torch.export.Dim("batch", min=1, max=1024)
            program = torch.onnx.export(
                module, (example,), input_names=["x"], dynamo=True, dynamic_shapes=({0: batch},), verbose=False
            )
            assert program is not None
            return program.model_proto
        torch.onnx.export(
            module,
            (example,),
            file,  # type: ignore[arg-type]  # this exporter takes open files too
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "batch"}, "y": {0: "batch"}},
            opset_version=17,
            dynamo=False,
        )
    return onnx.load_from_string(file.getvalue())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn of their own deprecations; attention is traced as the operators that it is made of."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            for category in (DeprecationWarning, FutureWarning, UserWarning):
                warnings.filterwarnings("ignore", category=category, module=rf"{__name__}|torch|onnxscript|copyreg")
            # Raised from C++, which names no module: a check of sizes is taken for a value that decides.
            warnings.filterwarnings("ignore", message="Converting a tensor to a Python boolean")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@cache
def sklearn_export(*, zipmap: bool = False) -> tuple[onnx.ModelProto, Array]:
    """A perceptron with two hidden layers, trained by scikit-learn on its digits; and eight of them, ``(8, 64)``.

    With `zipmap`, skl2onnx's default, its second output is a sequence of maps.
    """
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    digits = load_digits()
    images = (digits.data / 16).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # four epochs are enough for weights to map
        trained = MLPClassifier((32, 24), max_iter=4, random_state=0).fit(images, digits.target)
    return to_onnx(trained, images[:1], target_opset=17, options={"zipmap": zipmap}), images[:8]
