"""A model's folder in Hugging Face format: find it, check its weights, read them."""
import hashlib
import json
import os
from glob import glob

from lib.cli import check

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def find_model(path_or_hub_name):
    """Local folder of a model: the given one, or the hub's, downloaded once.

    Raises FileNotFoundError.
    """
    if os.path.isfile(os.path.join(path_or_hub_name, "config.json")):
        return path_or_hub_name
    if (os.path.isdir(path_or_hub_name) or path_or_hub_name.count("/") != 1
            or path_or_hub_name.startswith((".", "/"))):
        raise FileNotFoundError(f"{path_or_hub_name}: no config.json there (a model is a folder in "
                                "Hugging Face format, or a hub name such as Qwen/Qwen2.5-1.5B)")
    try:
        patterns = ["*.json", "*.safetensors", "merges.txt"]
        return snapshot_download(path_or_hub_name, allow_patterns=patterns)
    except Exception as e:  # offline, no such repository, no access: they all mean the same here
        raise FileNotFoundError(f"{path_or_hub_name}: not a local folder, and the hub did not give "
                                f"it ({type(e).__name__})") from e


def weight_files(path):
    """The safetensors files that the index lists, or all. Raises FileNotFoundError."""
    index = os.path.join(path, "model.safetensors.index.json")
    if os.path.isfile(index):
        with open(index) as f:
            names = sorted(set(json.load(f)["weight_map"].values()))
        files = [os.path.join(path, name) for name in names]
    else:
        files = sorted(glob(os.path.join(path, "*.safetensors")))
    if not files:
        raise FileNotFoundError(f"{path}: no .safetensors file there")
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}: listed in {index}, but missing")
    return files


def read_weights(path, tied):
    """Yield (name, tensor) one at a time, so that no second copy of the model is held in memory.

    tied: the head is the embedding; some such checkpoints store the matrix twice.
    """
    for file in weight_files(path):
        with safe_open(file, framework="pt") as f:
            for name in f.keys():
                if not (tied and name == HEAD):
                    yield name, f.get_tensor(name)


def check_weights(path, shapes, tied):
    """Raises ValueError unless the tensors in `path` are exactly shapes: {name: list of int}.

    Reads the files' headers only. vLLM doesn't check this: for a missing tensor it samples from
    whatever its memory holds.
    """
    found = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as f:
                found.update({name: f.get_slice(name).get_shape() for name in f.keys()})
                twice = tied and {EMBEDDING, HEAD} <= set(f.keys())
                if twice and torch.equal(f.get_tensor(EMBEDDING), f.get_tensor(HEAD)):
                    del found[HEAD]  # read_weights leaves it out
        except SafetensorError as e:
            raise ValueError(f"{file}: not a whole safetensors file ({e})") from None
    for kind, names in (("missing", shapes.keys() - found.keys()),
                        ("not in the model:", found.keys() - shapes.keys())):
        some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        check(not names, f"{path}: the weights don't fit config.json: {kind} {some} "
              f"({len(names)} in all)")
    for name, shape in shapes.items():
        check(found[name] == shape, f"{path}: {name} has shape {found[name]}, config.json asks for "
              f"{shape}")


def fingerprint(path):
    """SHA-256 over config.json and every byte of the weights (a second or so per GiB)."""
    total = hashlib.sha256()
    for file in [os.path.join(path, "config.json"), *weight_files(path)]:
        with open(file, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()
