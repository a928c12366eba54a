"""MiniGPT: a small GPT, from raw text to a deployed model.

Nothing is imported here, so that each part loads only what it needs:
`minigpt.tokenizer` no PyTorch, `minigpt.generation.onnx_backend` nothing but NumPy and ONNX Runtime.
"""
