"""What the stages share, one job per file. Nothing in here imports a stage.

Every file imports our modules before torch and vLLM (pyproject.toml sets that order), so this is
the place for what these two read when they are imported. Variables that are set already stay.
"""
import logging
import os

for name, value in (("TORCH_CPP_LOG_LEVEL", "ERROR"),        # no warnings about threads and NUMA
                    ("VLLM_LOGGING_LEVEL", "ERROR"),         # INFO shows what vLLM does
                    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),  # the engine lives in our processes
                    ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
                    ("VLLM_CPU_KVCACHE_SPACE", "1")):        # GiB; used without a GPU
    os.environ.setdefault(name, value)
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # also while it is imported
