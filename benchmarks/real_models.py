"""Published networks in installed packages (which are not imported), each with a shape and an input it is made for."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Array = npt.NDArray[Any]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class RealModel:
    """A published network.

    Attributes
    ----------
    package, file
        Where it lies.
    input_shapes
        Of one sample; the batch stays open.
    feeds
        Gives realistic inputs of two samples.
    recurrent
        Whether most of its multiply-accumulates lie in a recurrent layer.
    """

    package: str
    file: str
    input_shapes: dict[str, tuple[int, ...]]
    feeds: Callable[[], Feeds]
    recurrent: bool = False

    @property
    def path(self) -> Path:
        """The file.

        Raises
        ------
        FileNotFoundError
            If its package is not installed.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"{self.package} is not installed; `make test` installs it")
        return Path(spec.origin).parent / self.file


def text_image(height: int, width: int, text: str) -> Array:
    """Black text on light grey, ``(3, height, width)``, scaled by ``(x / 255 - 0.5) / 0.5`` as the models want it."""
    image = Image.new("RGB", (width, height), (225, 225, 220))
    size = min(height * 0.6, 1.6 * width / len(text))
    ImageDraw.Draw(image).text(
        (width // 2, height // 2), text, fill=(15, 15, 20), font=ImageFont.load_default(size), anchor="mm"
    )
    pixels = np.asarray(image, np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))


def two_texts(height: int, width: int) -> Feeds:
    """A batch of two lines of text."""
    return {"x": np.stack([text_image(height, width, text) for text in ("crossbar", "128 rows")])}


def voice_like() -> Feeds:
    """36 ms at 16 kHz of a tone of 120 Hz with the formants of an 'a', and of silence, as silero's windows are."""
    time = np.arange(576) / 16000
    tone = np.zeros(576)
    for harmonic in range(1, 30):
        frequency = 120 * harmonic
        level = sum(np.exp(-(((frequency - formant) / 150) ** 2)) for formant in (700, 1220, 2600))
        tone += (0.05 + level) * np.sin(2 * np.pi * frequency * time + harmonic)
    noise = np.random.default_rng(0).standard_normal(576)
    windows = np.stack([0.3 * tone / np.abs(tone).max(), 1e-3 * noise])
    return {
        "input": windows.astype(np.float32),
        "state": np.zeros((2, 2, 128), np.float32),
        "sr": np.asarray(16000, np.int64),
    }


def _rapidocr(file: str, height: int, width: int) -> RealModel:
    shapes: dict[str, tuple[int, ...]] = {"x": (1, 3, height, width)}
    return RealModel("rapidocr_onnxruntime", f"models/{file}", shapes, lambda: two_texts(height, width))


REAL_MODELS = {
    "ocr_direction": _rapidocr("ch_ppocr_mobile_v2.0_cls_infer.onnx", 48, 192),
    "ocr_detector": _rapidocr("ch_PP-OCRv4_det_infer.onnx", 64, 160),
    "ocr_recogniser": _rapidocr("ch_PP-OCRv4_rec_infer.onnx", 48, 160),
    "voice_activity": RealModel(
        "silero_vad",
        "data/silero_vad_16k_op15.onnx",
        {"input": (1, 576), "state": (2, 1, 128)},
        voice_like,
        recurrent=True,
    ),
}
