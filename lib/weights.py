"""A model's folder in Hugging Face format: find it, check its weights, read them."""
import hashlib
import os
import shutil

from lib.cli import check
from lib.files import files_in, read_json

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# Files that training doesn't change. The exported model has them byte for byte: written anew by one
# release of transformers, a tokenizer may not open in another.
UNCHANGED = (r"tokenizer.*|vocab\..*|merges\.txt|special_tokens_map\.json|added_tokens\.json|"
             r"chat_template\..*|generation_config\.json")


def find_model(path_or_hub_name):
    """Local folder of a model: the given one, or the hub's, downloaded once. Raises ValueError."""
    name = path_or_hub_name
    if os.path.isfile(os.path.join(name, "config.json")):
        return name
    check(not os.path.isfile(os.path.join(name, "adapter_config.json")),
          f"{name} is an adapter: merge it into its base model first (merge_and_unload and "
          "save_pretrained of peft), and name the merged model")
    check(name.count("/") == 1 and not name.startswith((".", "/")) and not os.path.isdir(name),
          f"{name}: no config.json there (a model is a folder in Hugging Face format, or a hub "
          "name such as Qwen/Qwen2.5-1.5B)")
    try:
        path = snapshot_download(name, ignore_patterns="*/*", allow_patterns=[
            "*.json", "*.safetensors", "*.jinja", "merges.txt"])
    except Exception as e:  # offline, no such repository, no access: they all mean the same here
        raise ValueError(f"{name}: not a local folder, and the hub did not give it "
                         f"({type(e).__name__}): check the name and the connection; if the model "
                         f"is gated or private, accept its licence on https://huggingface.co/{name}"
                         " and run `hf auth login`") from e
    return find_model(path)


def weight_files(path):
    """The safetensors files that the index lists, or all. Raises OSError or ValueError."""
    index = os.path.join(path, "model.safetensors.index.json")
    listed = sorted(set(read_json(index).get("weight_map", {}).values()))
    files = ([os.path.join(path, name) for name in listed]
             or files_in(path, r".*\.safetensors"))
    check(files, f"{path}: no .safetensors file there; save_pretrained of transformers makes them "
          "of other formats")
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}: listed in {index}, but missing")
    return files


def read_weights(path, tied):
    """Yield (name, tensor) one at a time, so that no second copy of the model is held in memory.

    Left out, because the model computes them: the frequencies of rotary embeddings, which old
    checkpoints hold, and, if it is tied, the head, which some hold beside the embedding.
    """
    for file in weight_files(path):
        with safe_open(file, framework="pt") as f:
            for name in f.keys():
                if not (tied and name == HEAD or name.endswith("rotary_emb.inv_freq")):
                    yield name, f.get_tensor(name)


def check_weights(path, shapes, tied):
    """Raises ValueError unless the tensors in `path` are exactly shapes: {name: list of int}.

    Reads the files' headers only. vLLM doesn't check this: for a missing tensor it samples from
    whatever its memory holds.
    """
    found, place, ends = {}, {}, {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as f:
                for name in f.keys():
                    found[name], place[name] = f.get_slice(name).get_shape(), file
                    if tied and name in (EMBEDDING, HEAD):
                        ends[name] = f.get_tensor(name)
        except SafetensorError as e:
            raise ValueError(f"{file}: not a whole safetensors file ({e})") from None
    if len(ends) == 2:
        check(torch.equal(*ends.values()), f"{path}: {HEAD} differs from {EMBEDDING}, but "
              "config.json says tie_word_embeddings = true; set it to false to use both")
        del found[HEAD]
    found = {name: shape for name, shape in found.items() if "rotary_emb.inv_freq" not in name}
    for kind, names in (("missing:", shapes.keys() - found.keys()),
                        ("not in the model:", found.keys() - shapes.keys())):
        some = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        where = place.get(min(names, default=""), path)
        check(not names, f"{where}: the weights don't fit config.json: {kind} {some} "
              f"({len(names)} in all)")
    for name, shape in shapes.items():
        check(found[name] == shape,
              f"{path}: {name} has shape {found[name]}, config.json asks for {shape}")


def stop_ids(path, tokenizer):
    """Ids of the tokens at which vLLM, transformers and other samplers end a response: {int}."""
    config = read_json(f"{path}/generation_config.json") or read_json(f"{path}/config.json")
    ids = config.get("eos_token_id") or []
    return {tokenizer.eos_token_id, *(ids if isinstance(ids, list) else [ids])}


def copy_unchanged(path, folder):
    """Copy what training doesn't change of the initial model in `path`: see UNCHANGED."""
    for file in filter(os.path.isfile, files_in(path, UNCHANGED)):
        shutil.copy(file, folder)


def fingerprint(path, tokenizer):
    """SHA-256 over what decides the samples but for the prompts' tokens: the tokens that end a
    response, config.json and every byte of the weights (a second or so per GiB)."""
    total = hashlib.sha256(repr(sorted(map(str, stop_ids(path, tokenizer)))).encode())
    for file in [os.path.join(path, "config.json"), *weight_files(path)]:
        with open(file, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()
