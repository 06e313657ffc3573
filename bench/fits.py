"""Measured memory of training against the estimate that train_apo.py prints: true shapes of
Qwen2.5, random weights.

    python bench/fits.py           # without a GPU: 0.5B in several settings, 15 minutes, 16 GB
    python bench/fits.py --lora    # 0.5B and 1.5B with adapters of rank 32, 10 minutes, 10 GB
    python bench/fits.py --gpu     # on one GPU: 1.5B and 3B in 24 GB, 7B in 80 GB, and seconds
    python bench/fits.py --tiny    # to see that it works: 1M parameters, half a minute

The whole loop runs, vLLM included. Random weights never end a response, so each response has
max_response_tokens. Measured is `memory_gb` of metrics.jsonl: on a GPU, what torch allocates while
the policy trains; else the growth of the process since its engine was built.
torch.cuda.set_per_process_memory_fraction holds a process to its limit, somewhat more strictly than
a smaller card would: the sleeping engine's room still counts.
"""
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.estimate import make_model, on_meta_device
from lib.files import read_jsonl
from lib.memory import available_host_memory, estimate

import torch

REPO = Path(__file__).resolve().parent.parent
# Runs a script in this process: arguments are GB, the script, its constants.
LIMITED = """
import runpy, sys
limit, sys.argv = 1e9 * float(sys.argv[1]), sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
from lib import memory
import torch
torch.cuda.set_per_process_memory_fraction(limit / memory.gpu_memory())
memory.gpu_memory = lambda: limit
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Model, processes, sequences in a mini-batch, tokens of a response, limit in GB (0: none),
# settings. As in a real run an update takes several micro-batches: the gradients of the first are
# there while the second needs its activations and logits.
CPU = dict(dtype="bfloat16", micro_batch_tokens=256)
GPU = dict(dtype="bfloat16", checkpoint_activations=True, offload=True)
GPU_24 = GPU | dict(gpu_memory_utilization=0.12, micro_batch_tokens=8192)
LORA = dict(lora_rank=32, offload=False)
RUNS = {
    "--cpu": [("0.5B", 1, 8, 56, 0, CPU),
              ("0.5B", 1, 8, 56, 0, CPU | dict(checkpoint_activations=True)),
              ("0.5B", 1, 8, 56, 0, CPU | dict(checkpoint_activations=True, dtype="float32")),
              ("0.5B", 2, 16, 56, 0, CPU)],
    "--lora": [("0.5B", 1, 8, 56, 0, CPU | LORA),
               ("1.5B", 1, 8, 56, 0, CPU | LORA),
               ("1.5B", 1, 8, 56, 0, CPU | LORA | dict(checkpoint_activations=True))],
    "--gpu": [("1.5B", 1, 128, 1024, 24, GPU_24),
              ("3B", 1, 128, 1024, 24, GPU_24),
              ("3B", 1, 128, 1024, 24, GPU_24 | LORA),
              ("7B", 1, 128, 1024, 80, GPU | dict(gpu_memory_utilization=0.3,
                                                  micro_batch_tokens=16384)),
              ("7B", 1, 128, 1024, 80, GPU | LORA | dict(gpu_memory_utilization=0.3,
                                                         micro_batch_tokens=16384))],
    "--tiny": [("1M", 1, 8, 16, 0, CPU)]}


def call(*command):
    done = subprocess.run([*map(str, command)], text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(done.stdout[-5000:])
    return done.stdout


def train(out, size, processes, sequences, response, limit, settings):
    """One short run in the folder `out`. Returns the GB that it estimated, and the last line of its
    metrics."""
    if not os.path.isdir(size):
        make_model(size, size, torch.bfloat16)
    shared = [f"--model={size}", f"--out={out}", f"--max_response_tokens={response}",
              f"--dtype={settings['dtype']}"]
    call(sys.executable, REPO / "estimate_value.py", *shared, f"--max_prompts={2 * sequences}",
         "--samples_per_prompt=1",
         f"--gpu_memory_utilization={settings.get('gpu_memory_utilization', 0.5)}")
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
    output = call(
        sys.executable, *(["-c", LIMITED, limit] if limit else torchrun), REPO / "train_apo.py",
        *shared, f"--batch_size={2 * sequences}", f"--mini_batch_size={sequences}",
        f"--max_steps={3 if limit else 1}", "--eval_prompts=1", "--save_every=0",
        *(f"--{name}={value}" for name, value in settings.items()))
    gb, unit = re.search(r"each process needs about ([\d.]+) ([GM])B", output).groups()
    return (float(gb) / (1 if unit == "G" else 1000),
            read_jsonl(os.path.join(out, "metrics.jsonl"), ("memory_gb",))[-1])


def main(runs):
    call(sys.executable, REPO / "prepare.py", "--base_steps=0")
    print(f"{'model':<6}{'processes':>10}  {'settings':<48}{'tokens':>7}{'estimated':>11}"
          f"{'measured':>10}{'ratio':>7}  seconds: gen  ref  train  sync", flush=True)
    for number, (size, processes, sequences, response, limit, settings) in enumerate(runs):
        # A prompt such as "47+86=?" and a newline has 8 tokens.
        tokens = min(settings["micro_batch_tokens"], sequences // processes * (8 + response))
        _, on_host = estimate(on_meta_device(size), processes, tokens, settings["dtype"],
                              offload=settings.get("offload", False))
        host, available = sum(on_host.values()) * processes, available_host_memory()
        if host > 0.9 * available:
            print(f"{size:<6}{processes:>10}  skipped: takes {host / 1e9:.0f} GB of host memory, "
                  f"{available / 1e9:.0f} GB are available", flush=True)
            continue
        expected, metrics = train(f"run{number}", size, processes, sequences, response, limit,
                                  settings)
        measured = metrics["memory_gb"]
        shown = [settings["dtype"], *(name for name, value in settings.items() if value is True),
                 *(["LoRA"] if "lora_rank" in settings else [])]
        seconds = "  ".join(f"{metrics[f'seconds_{phase}']:10.1f}"
                            for phase in ("generate", "reference", "train", "sync"))
        print(f"{size:<6}{processes:>10}  {', '.join(shown):<48}{tokens:>7,}{expected:>9.2f}GB"
              f"{measured:>8.2f}GB{measured / expected:>7.2f}  {seconds}", flush=True)


if __name__ == "__main__":
    # The C library then gives memory back as soon as it is freed: only what is in use is counted.
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1000000")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main(RUNS.get(sys.argv[-1], RUNS["--cpu"]))
        os.chdir(REPO)
