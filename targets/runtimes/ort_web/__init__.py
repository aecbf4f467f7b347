"""ONNX Runtime Web, which runs ``.onnx`` files in browsers and in Node: the target ``ort-web``."""
