"""LiteRT's files (``.tflite``): how they are made of ``.onnx`` files, in its own environment, and what they say."""
