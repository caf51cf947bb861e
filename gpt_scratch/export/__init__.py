"""Files for other runtimes: ONNX and GGUF, each read back and compared before it is kept."""
