"""The target ``cortex-m``: TensorFlow Lite Micro with CMSIS-NN on an emulated Cortex-M, instructions counted."""
