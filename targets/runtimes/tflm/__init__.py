"""TensorFlow Lite Micro, the interpreter of microcontrollers, on this machine: the target ``tflm``."""
