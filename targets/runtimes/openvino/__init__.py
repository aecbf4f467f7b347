"""OpenVINO: the target ``openvino-cpu``, and which products it computes in integers."""
