"""ncnn: the target ``ncnn-cpu``, the process that converts ``.onnx`` files for it, and the converted network."""
