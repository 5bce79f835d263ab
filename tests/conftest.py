"""What every test stands on: one thread, and no model hub."""

import os

# Tests run in two processes; more threads than cores slow tiny products down by tens of times.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# On a CUDA device, so that cuBLAS gives the same numbers each time; read when it is first used.
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
