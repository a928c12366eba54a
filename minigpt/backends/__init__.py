"""The engines that turn ids into logits: PyTorch, and ONNX Runtime alone."""
