"""Responses on the disk: as they are sampled, as stage 1 keeps them, as the paper published them.

    responses.part.*.jsonl    while stage 1 samples: the settings, then a response per line
    values.pt                 when it is done: see estimate_value.py
    responses.jsonl           beside values.pt: all its responses, to read and to grade again
"""
import hashlib
import json
import os
import re
import time
from typing import NamedTuple

from lib.cli import check, progress
from lib.data import chat_fields, messages_of
from lib.distributed import all_gather, rank, set_activity
from lib.files import files_in, read_jsonl

import torch

# What decides the samples: those of runs that differ in any of these must not be mixed.
SAMPLED_WITH = ("model", "prompts", "temperature", "max_response_tokens", "dtype", "seed")
# What decides a prompt's tokens, and which prompts are left out.
PROMPT_SETTINGS = ("chat_template", "chat_template_kwargs", "max_prompt_tokens")
PARTS = "responses.part"  # how the names of these files begin


class Response(NamedTuple):
    tokens: list      # response token ids, with the EOS if it ended by itself
    text: str         # without special tokens
    truncated: bool   # it reached the limit of tokens without an EOS
    logps: list = ()  # ln p of each token as it was sampled, float; empty unless requested


def sample(engine, todo, folder, name, settings, max_response_tokens, temperature,
           desc="sampling"):
    """Sample a response for each (row, sample number, seed) of todo, on all engines. A collective.

    Each engine writes a new file, <folder>/<name>.<time>.<engine>.jsonl: first a line with the
    settings, then one per response, as soon as it is finished. Returns (seconds, tokens).
    """
    set_activity(desc)
    begin, tokens = time.time(), 0
    todo = engine.share(todo)
    stream = engine.stream([row["tokens"] for row, _, _ in todo], [seed for _, _, seed in todo],
                           max_response_tokens, temperature)
    os.makedirs(folder, exist_ok=True)
    file = os.path.join(folder, f"{name}.{time.time_ns()}.{engine.engine_index}.jsonl")
    try:
        with open(file if engine.tp_rank == 0 else os.devnull, "w") as f:
            f.write(json.dumps(settings) + "\n")
            for k, r in progress(stream, total=len(todo), unit="response",
                                 desc=f"{desc}, engine 1 of {engine.num_engines}"):
                row, i, _ = todo[k]
                f.write(json.dumps({"id": row["id"], "sample": i, "text": r.text,
                                    "length": len(r.tokens), "finished": not r.truncated,
                                    "tokens": r.tokens}) + "\n")
                f.flush()
                tokens += len(r.tokens)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"\nstopped; all finished responses are in {folder}: run the same "
                                "command again to continue") from None
    tokens = sum(all_gather(tokens if engine.tp_rank == 0 else 0))
    return time.time() - begin, tokens


def read_parts(folder, name):
    """[(path, settings, responses)] of the files that sample() has written, or is writing."""
    parts = []
    for path in files_in(folder, rf"{re.escape(name)}\.\d+\.\d+\.jsonl"):
        with open(path, "rb") as f:  # the last line may be incomplete
            lines = [json.loads(line) for line in f if line.endswith(b"\n")]
        if lines:
            parts.append((path, lines[0], lines[1:]))
    return parts


# ---- values.pt -----------------------------------------------------------------------------------

def load_values(path):
    """The dictionary of a values.pt. Raises ValueError if there is none, or if it isn't one."""
    check(os.path.isfile(path), f"{path}: no such file; make it with estimate_value.py and the "
          "same --model, --task and --out, or copy it from another run")
    keys = ("ids", "rewards", "lengths", "finished", "v_star", "meta")
    try:
        values = torch.load(path, weights_only=True)
        return {key: values[key] for key in keys}
    except Exception as e:
        raise ValueError(f"{path}: not a whole values file ({type(e).__name__}); delete it and run "
                         "estimate_value.py again") from None


def describe(values):
    """{what: text} about stage 1's result, for the screen and the report."""
    rewards, (num_prompts, n) = values["rewards"], values["rewards"].shape
    counts = (rewards == 1).sum(1).bincount(minlength=n + 1).tolist()
    return {"mean reward": f"{rewards.mean():.3f}", "mean V*": f"{values['v_star'].mean():.3f}",
            f"pass@{n}": f"{1 - counts[0] / num_prompts:.1%}",
            f"prompts with 0 to {n} right": ", ".join(map(str, counts)),
            "truncated": f"{1 - values['finished'].float().mean():.1%}",
            "response length": f"{values['lengths'].float().mean():.1f} tokens"}


def match_values(folder, rows, expected, filter_incorrect):
    """For stage 2: (those rows that <folder>/values.pt has, their V* (P,), a text that tells other
    rows or values apart: how many there are, and SHA-256 of both).

    expected: what must be the same in the file's meta; filter_incorrect: leave out prompts that
    were never solved. Raises OSError or ValueError with one line.
    """
    path = os.path.join(folder, "values.pt")
    values = load_values(path)
    part, theirs, ours = difference(values["meta"], expected,
                                    [name for name in expected if name not in PROMPT_SETTINGS])
    check(not part, f"{path} was made with another {part} than this run's ({theirs}, here {ours}): "
          "run estimate_value.py again with this run's settings, or mend them")
    solved = (values["rewards"] == 1).any(1)                                               # (P,)
    kept = [k for k, ever in enumerate(solved.tolist()) if ever or not filter_incorrect]
    by_id, v_star = {row["id"]: row for row in rows}, values["v_star"][kept]
    rows = [by_id[values["ids"][k]] for k in kept]
    seen = json.dumps([[row["id"] for row in rows], v_star.tolist()])
    digest = hashlib.sha256(seen.encode()).hexdigest()
    return rows, v_star, f"{len(rows)} prompts, SHA-256 {digest[:16]}"


def read_stage_1(folder, rows, steps, epoch):
    """For stage 2, the responses of its first `steps` steps, of which an epoch has `epoch`: the
    first samples of each row, as {(prompt id, sample number): Response}. Raises ValueError."""
    if not steps:
        return {}
    path, number = os.path.join(folder, "responses.jsonl"), -(-steps // max(epoch, 1))
    lines = {line["id"]: line["responses"] for line in read_jsonl(path, ("id", "responses"))}
    found = {(row["id"], s["sample"]): Response(s["tokens"], s["text"], not s["finished"],
                                                [0.0] * len(s["tokens"]))
             for row in rows for s in lines.get(row["id"], []) if s["sample"] < number}
    check(len(found) == number * len(rows), f"--stage_1_steps={steps}: {path} has fewer samples "
          f"than the {number} of each prompt that these steps need ({epoch} steps are an epoch)")
    return found


def difference(theirs, ours, names):
    """(name, their value, our value) of the first setting in which two jobs differ, or Nones. If
    their prompts do, a setting that explains it comes first."""
    if "prompts" in names and theirs.get("prompts") != ours["prompts"]:
        names = (*PROMPT_SETTINGS, *names)
    name = next((name for name in names if theirs.get(name) != ours.get(name)), None)
    return name, theirs.get(name), ours.get(name)


def read_samples(folder, meta):
    """For stage 1: the samples of an earlier run in `folder`, finished or interrupted, as
    {(prompt id, sample number): {"sample", "text", "length", "finished"}}.

    Raises ValueError, naming the setting, if they were sampled with other settings than `meta`.
    """
    def check_settings_of(settings, path):
        name, theirs, ours = difference(settings, meta, SAMPLED_WITH)
        check(not name, f"{path} was sampled with {name} = {theirs}, this run has {ours}; choose "
              "another --out, or delete that file to start anew")

    samples, values = {}, os.path.join(folder, "values.pt")
    if os.path.exists(values):
        check_settings_of(load_values(values)["meta"], values)
        for row in read_jsonl(os.path.join(folder, "responses.jsonl"), ("id", "responses")):
            samples.update({(row["id"], s["sample"]): s for s in row["responses"]})
    for path, settings, lines in read_parts(folder, PARTS):
        check_settings_of(settings, path)
        for s in lines:
            if rank > 0:  # rank 0 writes them to responses.jsonl
                s.pop("tokens")
            samples[s.pop("id"), s["sample"]] = s
    return samples


# ---- the paper's published samples ---------------------------------------------------------------
#
# A row per prompt, on the Hugging Face hub as Cornell-AGI/gsm8k_size_qwen2.5_1.5b_eval and others:
#
#     prompt                      a list of messages; the first one's "content" is the prompt's text
#     reward_model                {"ground_truth": the answer, ...}
#     response_0, response_1 ...  the responses, text
#     eval_0, eval_1 ...          their rewards

def read_published(source, rows, n, tokenizer, max_response_tokens):
    """The first n responses to each prompt of `rows` that the data set has, as read_samples()
    returns them, each with "published": its published reward.

    source: a .parquet file or a hub name; rows: data rows, found again by their prompts' text. No
    column says whether a response ended by itself: those shorter than the limit are taken to have.
    """
    import datasets  # takes seconds to import
    try:
        table = (datasets.Dataset.from_parquet(source) if source.endswith(".parquet") else
                 datasets.load_dataset(source, split="train"))
    except Exception as e:  # no such file, no parquet file, offline, no such data set, no access
        raise ValueError(f"--responses_from={source} can't be read ({type(e).__name__}). It can be "
                         "a .parquet file or a data set on the hub") from e
    columns = ["prompt", *(f"{name}_{i}" for name in ("response", "eval") for i in range(n))]
    missing = [name for name in columns if name not in table.column_names]
    check(not missing, f"{source} has no column {', '.join(missing)}")
    ids, samples = {row["prompt"].strip(): row["id"] for row in rows}, {}
    for published in table:
        prompt_id = ids.get(chat_fields(published["prompt"])["prompt"].strip())
        for i in range(n if prompt_id is not None else 0):
            text = published[f"response_{i}"]
            tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
            tokens = [*tokens, tokenizer.eos_token_id]
            samples[prompt_id, i] = {
                "sample": i, "text": text, "length": min(len(tokens), max_response_tokens),
                "finished": len(tokens) <= max_response_tokens,
                "tokens": tokens[:max_response_tokens],
                "published": float(published[f"eval_{i}"])}
    check(samples, f"{source}: none of its prompts is in data/; was it made with this task?")
    print(f"{source}: responses to {len(samples) // n:,} of {len(rows):,} prompts; it has "
          f"{len(table):,} prompts")
    return samples


def push_responses(name, rows, samples):
    """Upload responses in these columns to the hub data set `name`. rows: those with all samples;
    samples: as read_samples() returns them, with "reward"."""
    import datasets
    try:
        datasets.Dataset.from_list(published_rows(rows, samples)).push_to_hub(name)
    except Exception as e:  # offline, no access: the files of stage 1 are complete
        print(f"warning: the hub did not take {name} ({type(e).__name__}: "
              f"{' '.join(str(e).split())[:200]}); the same command tries again")


def published_rows(rows, samples):
    """Responses in the paper's columns, one dictionary per prompt."""
    table = {row["id"]: {
        "data_source": row["task"], "prompt": messages_of(row),
        "reward_model": {"style": "rule", "ground_truth": row["answer"]}} for row in rows}
    for (prompt_id, i), s in sorted(samples.items()):
        if prompt_id in table:
            table[prompt_id] |= {f"response_{i}": s["text"], f"eval_{i}": s["reward"]}
    return list(table.values())
