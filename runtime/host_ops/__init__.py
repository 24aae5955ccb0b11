"""ONNX operators of digital segments, as torch calls; one small function an operator."""
