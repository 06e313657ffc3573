"""Seconds per 256 prompts of this repository and of TRL's A2PO trainer, in turns on one machine.

    python bench/trl.py                  # both workloads, three runs each, in 20 minutes on 2 cores
    python bench/trl.py --runs=1 --tail=False

Both train the same base model of 1M parameters on the same prompts with the same reward, two
updates per 256 prompts:
  embedded   the arithmetic task with its base model: responses of about 25 tokens, all alike
  long tail  a random model, in which every token may be the last: lengths are geometric with a mean
             of about 220, at most 512
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

runs = 3         # of each, in turns; their medians are compared
embedded = True  # the workloads
tail = True
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


def ours(model, tokens, prompts, updates):
    """{"stage 1", "stage 2": seconds per 256 prompts, "memory": GB}"""
    shared = [f"--model={model}", f"--max_response_tokens={tokens}"]
    shutil.rmtree("out", ignore_errors=True)
    output, _ = call(sys.executable, "-c", STAGE_1, *shared, f"--max_prompts={prompts}")
    seconds = float(output.split("SECONDS")[1].split()[0])
    # Stage 2 needs V* of more prompts than were timed above.
    if prompts < 256:
        call(sys.executable, REPO / "estimate_value.py", *shared, "--max_prompts=256",
             "--samples_per_prompt=1")
    _, memory = call(sys.executable, REPO / "train_apo.py", *shared, "--lr_decay=False",
                     f"--max_steps={updates // 2}", "--eval_every=1000", "--eval_prompts=1",
                     "--save_every=0")
    steps = [m["seconds_step"] for m in read_jsonl("out/arithmetic/metrics.jsonl", ())]
    return {"stage 1": seconds * 256 / prompts, "stage 2": statistics.median(steps[1:]),
            "memory": memory}


def trl(model, tokens, prompts, updates):
    output, memory = call(trl_python(), REPO / "bench/trl_a2po.py", model,
                          "data/arithmetic/train.jsonl", tokens, prompts, updates)
    result = json.loads(output.splitlines()[-1])
    return {"stage 1": result["stage_1"] * 256 / prompts,
            "stage 2": 2 * statistics.median(result["updates"][2:]), "memory": memory}


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
    call(sys.executable, REPO / "prepare.py")
    random_model("random")
    # Model, longest response, prompts of stage 1, updates of stage 2.
    workloads = {}
    if args.embedded:
        workloads["embedded"] = ("data/arithmetic/model", 32, 1024, 24)
    if args.tail:
        workloads["long tail"] = ("random", 512, 128, 8)
    print(f"{'seconds per 256 prompts':<26}{'TRL':>24}{'ours':>24}{'TRL / ours':>12}")
    for name, workload in workloads.items():
        results = [(trl(*workload), ours(*workload)) for _ in range(args.runs)]
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
