"""The detector: a PyTorch module that is exported, and the runtime of detector.onnx, which needs no
PyTorch."""
