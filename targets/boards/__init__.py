"""The target ``ssh``: a real board, reached over the network, and the code of ours that is sent to run there."""
