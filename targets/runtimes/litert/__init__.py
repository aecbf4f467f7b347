"""LiteRT, which runs ``.tflite`` files on phones and boards: the target ``litert-cpu``."""
