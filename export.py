"""A model in Hugging Face format out of a training run's checkpoint.

    python export.py out/arithmetic                          # of the newest checkpoint
    python export.py out/arithmetic/ckpt/step-000024         # to out/arithmetic/model-000024
    python export.py out/arithmetic --model=my_models/base   # the initial model has moved

A run that ends writes <out>/model by itself. This is for runs that were stopped, and for earlier
checkpoints (`keep_checkpoints` in train_apo.py).
"""
import os
import sys

from lib.checkpoint import all_checkpoints
from lib.cli import check, one_line_errors
from lib.distributed import run_stage
from lib.files import read_json
from lib.run import write_model
from lib.weights import fingerprint
from model import Qwen2, open_model

import torch
import torch.distributed.checkpoint as dcp


def export(path, model=""):
    """Write a checkpoint's model beside its run's ckpt folder; returns the new folder. `path`: a
    checkpoint, or a run's folder; model: the run's initial model; empty: where it was. Raises
    OSError or ValueError."""
    path = os.path.normpath(path)
    path = max(all_checkpoints(path), default=path)
    constants = read_json(os.path.join(path, "checkpoint.json")).get("constants")
    check(constants, f"{path} is neither a checkpoint nor the folder of a run that has one")
    try:
        initial_model, _, tokenizer = open_model(model or constants["model"])
        check(fingerprint(initial_model, tokenizer) == constants["fingerprint of model"],
              f"{initial_model} is not the model with which {path} began")
    except (OSError, ValueError) as e:
        raise ValueError(f"{e}. If that model has moved, add --model=FOLDER") from None
    dtype, steps = getattr(torch, constants["dtype"]), path[-6:]
    lora = constants.get("lora_rank", 0), constants.get("lora_alpha", 0.0)
    policy = Qwen2.from_pretrained(initial_model, dtype, lora=lora)
    weights = {name: p.data for name, p in policy.named_parameters() if p.requires_grad}
    saved = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    if any(name.startswith("policy.policy.") for name in saved):  # PPO's hold the critic, too
        weights = {f"policy.{name}": tensor for name, tensor in weights.items()}
    dcp.load({"policy": weights}, checkpoint_id=path)
    folder = os.path.join(os.path.dirname(os.path.dirname(path)), f"model-{steps}")
    write_model(folder, policy, dtype, initial_model, {"steps": int(steps), "constants": constants})
    return folder


@one_line_errors()
def main(arguments):
    models, paths = ([a for a in arguments if a.startswith("--model=") == is_model]
                     for is_model in (True, False))
    check(paths, "name runs or checkpoints: python export.py out/arithmetic")
    for path in paths:
        print(f"wrote {export(path, ''.join(models).removeprefix('--model='))}")


if __name__ == "__main__":
    run_stage(main, sys.argv[1:], alone=True)
