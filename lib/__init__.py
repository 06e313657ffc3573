"""What the stages share, one job per file. Nothing in here imports a stage.

Every script imports our modules before torch and vLLM, so this is the place for what these two read
when they are imported. A variable that is already set stays.
"""
import ctypes
import logging
import os

for name, value in (("TORCH_CPP_LOG_LEVEL", "ERROR"),        # no warnings about threads and NUMA
                    ("VLLM_LOGGING_LEVEL", "ERROR"),         # INFO shows what vLLM does
                    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),  # the engine lives in our processes
                    ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
                    ("VLLM_CPU_KVCACHE_SPACE", "1")):        # GiB; used without a GPU
    os.environ.setdefault(name, value)
# On a CPU every operation allocates its result. By default the C library takes megabytes from the
# kernel and gives them back each time. Kept for the next operation, they save a tenth of a training
# step.
if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**30)
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # also while it is imported
