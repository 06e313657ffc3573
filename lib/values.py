"""Stage 1's files: values.pt, and the samples it is made from."""
import hashlib
import json
import os

from lib.cli import check
from lib.files import read_jsonl
from lib.samples import read_parts

import torch

# What decides the samples: those of runs that differ in any of these must not be mixed.
SAMPLED_WITH = ("model", "prompts", "temperature", "max_response_tokens", "dtype", "seed")
# While stage 1 runs, each engine has such a file.
PARTS = "responses.part.*.jsonl"


def load_values(path):
    """The dictionary of a values.pt. Raises ValueError if it isn't one."""
    try:
        values = torch.load(path, weights_only=True)
        keys = ("ids", "rewards", "lengths", "finished", "v_star", "meta")
        return {key: values[key] for key in keys}
    except FileNotFoundError:
        raise
    except Exception as e:
        raise ValueError(f"{path}: not a whole values file ({type(e).__name__}); make it with "
                         "estimate_value.py") from None


def add_v_star(rows, folder, expected, filter_incorrect, baseline):
    """For stage 2: (those rows that <folder>/values.pt has, each with "v_star", their fingerprint).

    expected: what must be the same in the file's meta; filter_incorrect: leave out prompts that
    were never solved; baseline: what to take for V*: "v_star", the mean reward of the same samples
    ("mean", "running_mean"), or "zero". Raises OSError or ValueError with one line.
    """
    path = os.path.join(folder, "values.pt")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file; make it with estimate_value.py and the "
                                "same --model, --task and --out, or copy it from another run")
    values = load_values(path)
    for part, ours in expected.items():
        theirs = values["meta"].get(part)
        check(theirs == ours, f"{path} was made with another {part} than this run's ({theirs}, "
              f"here {ours}): run estimate_value.py again with this run's settings, or mend them")
    by_id = {row["id"]: row for row in rows}
    mean, samples = values["rewards"].mean(1), values["rewards"].shape[1]                  # (P,)
    choices = {"v_star": values["v_star"], "mean": mean, "running_mean": mean,
               "zero": torch.zeros_like(mean)}
    check(baseline in choices, f"--baseline={baseline}: it must be one of {', '.join(choices)}")
    solved = (values["rewards"] == 1).any(1)                                               # (P,)
    rows = [{**by_id[i], "v_star": v_star, "samples": samples} for i, v_star, ever
            in zip(values["ids"], choices[baseline].tolist(), solved.tolist(), strict=True)
            if ever or not filter_incorrect]
    seen = json.dumps([[row["id"], row["v_star"]] for row in rows])
    return rows, hashlib.sha256(seen.encode()).hexdigest()


def add_to_means(rows, rewards):
    """Add a new sample's reward to each prompt's mean reward, which its row has as "v_star"."""
    for row, reward in zip(rows, rewards, strict=True):
        row["samples"] += 1
        row["v_star"] += (reward - row["v_star"]) / row["samples"]


def read_samples(folder, meta):
    """Samples of an earlier run in `folder`, finished or interrupted:
    {(prompt id, sample number): {"sample", "text", "length", "finished"}}.

    Raises ValueError, naming the setting, if they were sampled with other settings than `meta`.
    """
    def check_settings_of(theirs, path):
        for key in SAMPLED_WITH:
            check(theirs.get(key) == meta[key], f"{path} was sampled with {key} = "
                  f"{theirs.get(key)}, this run has {meta[key]}; choose another --out, or delete "
                  "that file to start anew")

    samples = {}
    values = os.path.join(folder, "values.pt")
    if os.path.exists(values):
        check_settings_of(load_values(values)["meta"], values)
        for row in read_jsonl(os.path.join(folder, "responses.jsonl"), ("id", "responses")):
            samples.update({(row["id"], s["sample"]): s for s in row["responses"]})
    for path, settings, lines in read_parts(os.path.join(folder, PARTS)):
        check_settings_of(settings, path)
        for s in lines:
            s.pop("tokens")  # their number is kept
            samples[s.pop("id"), s["sample"]] = s
    return samples
