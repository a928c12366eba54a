"""MiniGPT: a small GPT, from raw text to a deployed model.

Nothing is imported here, so that each package loads only what it needs: `minigpt.tokenizer` loads
no PyTorch, and `minigpt.generation.onnx_backend` loads only NumPy and ONNX Runtime.
"""
