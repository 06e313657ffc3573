"""Stages one after the other in one job: to import vLLM and to build an engine takes longer than a
few steps of a small model, so a test whose stages need no processes of their own shares both.

    python tests/stages.py               # conftest.run() sends it requests, see serve()
    torchrun --nproc_per_node=2 tests/stages.py '[["evaluate.py", "--max_prompts=33"], ...]'

The real engine samples. It gets the weights of each stage's model, all of which have one shape.
"""
import gc
import importlib
import json
import os
import sys
import traceback

import lib.files
import reward
import rollout
from lib.distributed import State, exit_status, init_process_group, rank_main, run_stage
from lib.weights import read_weights
from model import Config

build, engines = rollout.Engine, {}


def shared_engine(path, dtype, max_len, gpu_memory_utilization, tp=1):
    key = (str(Config.from_pretrained(path)), dtype, tp)
    if key in engines:
        engines[key].sync(read_weights(path, engines[key].tied))
    else:
        engines[key] = build(path, dtype, 256, 0.5, tp)
    assert len(engines) == 1 and max_len <= 256
    return engines[key]


def run_one(script, *arguments):
    sys.argv[1:] = arguments
    module = importlib.import_module(script.removesuffix(".py"))
    module.main(module.configure(module.__file__))


def run_all(stages):
    for stage in stages:
        run_one(*stage)


def serve():
    """A request is a line of JSON: [folder to run in, file for the output, stage, arguments ...].
    The reply is a line with the stage's exit status."""
    init_process_group()
    replies = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        folder, output, *stage = json.loads(line)
        os.chdir(folder)
        with open(output, "w") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
        State.defer_signals, status = False, 1
        try:
            rank_main(lambda stage: run_one(*stage), stage)
            status = 0
        except SystemExit as end:
            status = exit_status(end)
        except Exception:
            traceback.print_exc()
        for engine in engines.values():  # a stage that failed may have left requests
            while engine.llm.llm_engine.has_unfinished_requests():
                engine.llm.llm_engine.step()
        while lib.files.locks:  # they end with a stage's process
            os.close(lib.files.locks.popitem()[1])
        reward.pool().shutdown()  # the next stage's tasks may be other files of the same name
        reward.pool.cache_clear()
        reward.load_task.cache_clear()
        gc.collect()
        sys.stdout.flush()
        sys.stderr.flush()
        print(status, file=replies, flush=True)


if __name__ == "__main__":
    rollout.Engine = shared_engine
    if sys.argv[1:]:
        run_stage(run_all, json.loads(sys.argv[1]), timeout_minutes=5.0)
    serve()
