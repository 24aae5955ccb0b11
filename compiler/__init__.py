"""ONNX in, tile program out."""
