"""Seconds per 256 prompts of this repository and of TRL's A2PO trainer, in turns on one machine.

    python bench/trl.py                  # both workloads, three runs each, in 20 minutes on 2 cores
    python bench/trl.py --runs=1 --workloads=embedded
    python bench/trl.py --workloads=chat --model=HuggingFaceTB/SmolLM2-135M-Instruct

Both sides train the same model on the same prompts with the same reward:
  embedded   the arithmetic task with its base model of 1M parameters: responses of about 25 tokens,
             all alike; 128 prompts per update
  long tail  a random model of that size, in which every token may be the last: lengths are
             geometric with a mean of about 220, at most 512; 128 prompts per update
  chat       a chat model on the task of tasks/instructions.py, in bfloat16 (autocast in TRL):
             responses of at most 48 tokens; 32 prompts per update
TRL gets an environment of its own (.venv-trl), with transformers' generate: its trainer has no
other. Peak memory is that of the whole process.
"""
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.pop(0)  # bench/, where this file is called like the library
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import prepare
from lib.cli import configure
from lib.files import read_jsonl
from model import Config, Qwen2

import torch

runs = 3                          # of each, in turns; their medians are compared
workloads = "embedded,long tail"  # of those above
model = ""                        # of the workload `chat`: a local folder, or a hub name
# --------------------------------------------------------------------------------------------------

VERSION = "1.16.0"
REPO = Path(__file__).resolve().parent.parent
# Times stage 1 from the first sample to values.pt.
STAGE_1 = """
import time, estimate_value
from lib.cli import configure
from lib.distributed import run_stage
sample, finish = estimate_value.sample, estimate_value.finish
def first(*args):
    global begin
    begin = time.perf_counter()
    return sample(*args)
def last(*args):
    result = finish(*args)
    print("SECONDS", time.perf_counter() - begin)
    return result
estimate_value.sample, estimate_value.finish = first, last
run_stage(estimate_value.main, configure(estimate_value.__file__))
"""


def trl_python():
    """The interpreter of TRL's environment, which is made when it is needed first."""
    folder = REPO / ".venv-trl"
    if not (folder / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin/pip", "install", "-q", f"torch=={torch.__version__}",
                        f"trl=={VERSION}"], check=True)
        (folder / "done").touch()
    return folder / "bin/python"


def call(*command):
    """(output, peak memory in GB) of a process that must end well."""
    process = subprocess.Popen([*map(str, command)], text=True, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT,
                               env={**os.environ, "PYTHONPATH": str(REPO)})
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(output[-5000:])
    return output, usage.ru_maxrss / 1e6


def ours(w):
    """{"stage 1", "stage 2": seconds per 256 prompts, "memory": GB} of a workload."""
    shared = [f"--model={w['model']}", f"--task={w['task']}", f"--chat_template={w['chat']}",
              f"--max_response_tokens={w['tokens']}",
              f"--dtype={'bfloat16' if w['chat'] else 'float32'}"]
    shutil.rmtree("out", ignore_errors=True)
    output, _ = call(sys.executable, "-c", STAGE_1, *shared, f"--max_prompts={w['prompts']}")
    seconds = float(output.split("SECONDS")[1].split()[0])
    # Stage 2 needs V* of more prompts than were timed above.
    if w["prompts"] < 256:
        call(sys.executable, REPO / "estimate_value.py", *shared, "--max_prompts=256",
             "--samples_per_prompt=1")
    batch = 2 * w["mini_batch"]
    _, memory = call(sys.executable, REPO / "train_apo.py", *shared, "--lr_decay=False",
                     f"--lr={w['lr']}", f"--batch_size={batch}",
                     f"--mini_batch_size={w['mini_batch']}", f"--max_steps={w['updates'] // 2}",
                     "--eval_every=1000", "--eval_prompts=1", "--save_every=0")
    steps = [m["seconds_step"] for m in read_jsonl(f"out/{w['task']}/metrics.jsonl", ())]
    return {"stage 1": seconds * 256 / w["prompts"],
            "stage 2": statistics.median(steps[1:]) * 256 / batch, "memory": memory}


def trl(w):
    output, memory = call(trl_python(), REPO / "bench/trl_a2po.py", json.dumps(w))
    result = json.loads(output.splitlines()[-1])
    return {"stage 1": result["stage_1"] * 256 / w["prompts"],
            "stage 2": statistics.median(result["updates"][2:]) * 256 / w["mini_batch"],
            "memory": memory}


def random_model(path):
    torch.manual_seed(0)
    tokenizer = prepare.byte_tokenizer()
    config = prepare.BASE_MODEL | {"initializer_range": 0.02}
    model = Qwen2(Config(vocab_size=len(tokenizer), **config))
    model.hf_config = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def main(args):
    trl_python()
    small = {"task": "arithmetic", "chat": False, "mini_batch": 128, "lr": 4e-4}
    # prompts: of stage 1; updates: of stage 2, two for each sampling
    known = {"embedded": small | {"model": "data/arithmetic/model", "tokens": 32, "prompts": 1024,
                                  "updates": 24},
             "long tail": small | {"model": "random", "tokens": 512, "prompts": 128, "updates": 8},
             "chat": {"task": "instructions", "chat": True, "mini_batch": 32, "lr": 4e-5,
                      "model": args.model, "tokens": 48, "prompts": 128, "updates": 8}}
    chosen = {name: known[name] for name in args.workloads.split(",")}
    for task in {workload["task"] for workload in chosen.values()}:
        call(sys.executable, REPO / "prepare.py", f"--task={task}")
    if "long tail" in chosen:
        random_model("random")
    print(f"{'seconds per 256 prompts':<26}{'TRL':>24}{'ours':>24}{'TRL / ours':>12}")
    for name, workload in chosen.items():
        results = [(trl(workload), ours(workload)) for _ in range(args.runs)]
        for key in ("stage 1", "stage 2", "memory"):
            columns = [sorted(result[key] for result in column)
                       for column in zip(*results, strict=True)]
            middle = [statistics.median(column) for column in columns]
            cells = [f"{m:.2f} ({c[0]:.2f} to {c[-1]:.2f})"
                     for m, c in zip(middle, columns, strict=True)]
            label = f"{name}, {'GB' if key == 'memory' else key}"
            print(f"{label:<26}{cells[0]:>24}{cells[1]:>24}{middle[0] / middle[1]:>12.2f}",
                  flush=True)


if __name__ == "__main__":
    args = configure(__file__)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main(args)
        os.chdir(REPO)
