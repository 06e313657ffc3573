"""What the stages share, one job per file. Nothing in here imports a stage.

Every file imports our modules before torch and vLLM (pyproject.toml sets that order), so this is
the place for what these two read when they are imported. Variables that are set already stay.
"""
import ctypes
import gc
import logging
import os

for name, value in (("TORCH_CPP_LOG_LEVEL", "ERROR"),        # no warnings about threads and NUMA
                    ("VLLM_LOGGING_LEVEL", "ERROR"),         # INFO shows what vLLM does
                    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),  # the engine lives in our processes
                    ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
                    ("VLLM_CPU_KVCACHE_SPACE", "1")):        # GiB; used without a GPU
    os.environ.setdefault(name, value)
# While torch and vLLM are imported, Python's garbage collector would run 1,500 times, which is an
# eighth of the time that a short run takes. It can run less often without using more memory: it has
# a few hundred objects to free after a training step, and none of them is a tensor.
gc.set_threshold(10_000, 50, 50)
# On a CPU every operation allocates its result. By default the C library takes megabytes from the
# kernel and gives them back each time; kept for the next one they save a tenth of a training step.
if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
    ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, 2**30)
logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # also while it is imported
