"""Measured memory of training against the estimate that train_apo.py prints, at the true shapes, with random weights.

    python bench/fits.py                      # without a GPU: 0.5B in several settings, a quarter of an hour, 16 GB
    python bench/fits.py --gpu                # on one GPU: 1.5B and 3B held to 24 GB, 7B to 80 GB, with the times of a step

Random weights never end a response, so each has max_response_tokens. The whole loop runs, vLLM included. What is measured is
`memory_gb` of metrics.jsonl: on a GPU what torch allocates while the policy trains, else the growth of the process since its
engine was there. torch.cuda.set_per_process_memory_fraction holds a process to its limit, somewhat more strictly than a smaller
card would: the sleeping engine's room still counts.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
import common  # noqa: F401  before torch
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "1000000")  # memory that is freed goes back: count what is in use

import torch

from memory import SIZES, estimate
from model import Qwen2
from prepare import byte_tokenizer

LIMITED = """
import runpy, sys, torch
limit, sys.argv = float(sys.argv[1]), sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
if torch.cuda.is_available():
    torch.cuda.set_per_process_memory_fraction(limit * 1e9 / torch.cuda.get_device_properties(0).total_memory)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Model, processes, sequences in a mini-batch, tokens of a response, GB, settings. As in a real run an update takes several
# micro-batches: the gradients of the first are there while the second needs its activations and logits.
ON_CPU = [("0.5B", 1, 8, 56, 0, dict(dtype="bfloat16", micro_batch_tokens=256)),
          ("0.5B", 1, 8, 56, 0, dict(dtype="bfloat16", micro_batch_tokens=256, checkpoint_activations=True)),
          ("0.5B", 1, 8, 56, 0, dict(dtype="float32", micro_batch_tokens=256, checkpoint_activations=True)),
          ("0.5B", 2, 16, 56, 0, dict(dtype="bfloat16", micro_batch_tokens=256))]
OFFLOAD = dict(offload_optimizer=True, offload_reference=True)
ON_GPU = [("1.5B", 1, 128, 1024, 24, dict(dtype="bfloat16", checkpoint_activations=True, engine_memory=0.12,
                                          micro_batch_tokens=8192, offload_optimizer=True)),
          ("3B", 1, 128, 1024, 24, dict(dtype="bfloat16", checkpoint_activations=True, engine_memory=0.12,
                                        micro_batch_tokens=8192, **OFFLOAD)),
          ("7B", 1, 128, 1024, 80, dict(dtype="bfloat16", checkpoint_activations=True, engine_memory=0.3,
                                        micro_batch_tokens=16384, offload_optimizer=True))]


def make_model(size):
    if not os.path.isdir(size):
        torch.manual_seed(0)
        model = Qwen2(SIZES[size])
        model.save_pretrained(size, torch.bfloat16)
        byte_tokenizer().save_pretrained(size)


def call(*command):
    done = subprocess.run([*map(str, command)], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(done.stdout[-5000:])
    return done.stdout


def main(runs):
    call(sys.executable, REPO / "prepare.py", "--base_steps=0")
    print(f"{'model':<6}{'processes':>10}  {'settings':<72}{'tokens':>7}{'estimated':>11}{'measured':>10}{'share':>7}  "
          "seconds: gen  ref  train  sync", flush=True)
    for number, (size, processes, sequences, response, limit, settings) in enumerate(runs):
        make_model(size)
        shared = [f"--model={size}", f"--out=run{number}", f"--max_response_tokens={response}", f"--dtype={settings['dtype']}"]
        call(sys.executable, REPO / "estimate_value.py", *shared, f"--max_prompts={2 * sequences}", "--samples_per_prompt=1",
             f"--gpu_memory={settings.get('engine_memory', 0.5)}")
        arguments = [*shared, f"--batch_size={2 * sequences}", f"--mini_batch_size={sequences}",
                     f"--max_steps={3 if limit else 1}", "--eval_prompts=1", "--save_every=0",
                     *(f"--{k}={v}" for k, v in settings.items())]
        launch = [sys.executable, "-c", LIMITED, limit] if limit else [sys.executable, "-m", "torch.distributed.run",
                                                                       f"--nproc_per_node={processes}"]
        call(*launch, REPO / "train_apo.py", *arguments)
        metrics = [json.loads(line) for line in open(f"run{number}/metrics.jsonl")][-1]
        tokens = min(settings["micro_batch_tokens"], sequences // processes * (8 + response))
        device, host = estimate(SIZES[size], processes, tokens, settings["dtype"], *(settings.get(k, False) for k in (
            "checkpoint_activations", "offload_reference", "offload_optimizer")))
        expected = sum(device.values()) / 1e9
        if not torch.cuda.is_available():
            expected += sum(host.values()) / 1e9  # all of it is this process's memory
        shown = ", ".join(k if v is True else f"{v}" if k == "dtype" else f"{k} {v}" for k, v in settings.items())
        print(f"{size:<6}{processes:>10}  {shown:<72}{tokens:>7,}{expected:>9.2f}GB{metrics['memory_gb']:>8.2f}GB"
              f"{metrics['memory_gb'] / expected:>7.2f}  " + "  ".join(f"{metrics['seconds_' + p]:10.1f}" for p in (
                  "generate", "reference", "train", "sync")), flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as WORK:
        os.chdir(WORK)
        main(ON_GPU if "--gpu" in sys.argv else ON_CPU)
        os.chdir(REPO)
