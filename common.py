"""What the stages share: constants from the command line, files that are written whole or not at all, prompts, and the
fingerprints by which a stage knows that the files it was given belong together."""
import ast
import difflib
import hashlib
import json
import os
import shutil
import sys
import time
from contextlib import contextmanager

# Messages of torch's and vLLM's internals are for their developers. Before torch is imported; set them to see more.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from tqdm import tqdm

import job
from reward import REWARDS, Graded, start_grading

STAGES = ("prepare.py", "estimate_value.py", "train_apo.py", "evaluate.py")


# ---- constants ---------------------------------------------------------------------------------------------------

def configure(script):
    """Override a script's constants, its lower-case numbers, strings and booleans, from the command line.

        python train_apo.py config/gsm8k_qwen2.5_1.5b.py --lr=2e-6

    A preset is a file of `name = value` lines and serves all stages: what only another stage has is skipped. Presets come
    first, wherever they stand. script is the caller's globals(). Returns the constants as they are now. Exits with one line on
    an unknown name, a value of the wrong type or a negative number.
    """
    mine = {k: v for k, v in script.items() if k.islower() and k[0] != "_" and type(v) in (bool, int, float, str)}
    here = os.path.dirname(os.path.abspath(__file__))

    def override(where, name, value, known):
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
            job.refuse(f"error: {where}: there is no constant {name!r}; " + (f"did you mean {near[0]}?" if near else
                     "--help lists them"))
        if name in mine:
            kind = type(mine[name])
            value = float(value) if kind is float and type(value) is int else value
            if type(value) is not kind:
                job.refuse(f"error: {where}: {name} is of type {kind.__name__}, such as {mine[name]!r}; got {value!r}")
            if kind in (int, float) and not value >= 0:
                job.refuse(f"error: {where}: {name} can't be {value}")
            script[name] = value

    for arg in sorted(sys.argv[1:], key=lambda arg: arg.startswith("--")):
        if arg in ("-h", "--help"):
            if job.rank > 0:
                sys.exit(0)
            with open(script["__file__"]) as f:
                lines = f.read().split("# " + "-" * 20)[0].splitlines()
            print(script["__doc__"], *(x for x in lines if x.startswith("# ") or x.split(" = ")[0] in mine), sep="\n")
            sys.exit(0)
        if arg.startswith("--"):
            name, eq, text = arg[2:].partition("=")
            if not eq:
                job.refuse(f"error: {arg}: constants are set as --{name}=value")
            override(arg, name, text if type(mine.get(name)) is str else literal(text), set(mine))
        elif os.path.isfile(arg):
            known = set(mine).union(*(stage_constants(os.path.join(here, stage)) for stage in STAGES))
            for name, value in preset_values(arg):
                override(arg, name, value, known)
        else:
            job.refuse(f"error: {arg}: neither --name=value nor a preset file")
    return {name: script[name] for name in mine}


def stage_constants(path):
    """Names assigned at the top level of a script. Nothing is executed."""
    with open(path) as f:
        return [n.targets[0].id for n in ast.parse(f.read()).body if isinstance(n, ast.Assign)
                and isinstance(n.targets[0], ast.Name) and n.targets[0].id.islower()]


def preset_values(path):
    """[(name, value)] of a preset. Nothing is executed; exits with one line on anything but `name = value`."""
    try:
        with open(path) as f:
            body = ast.parse(f.read()).body
        for node in body:
            if not (isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name)):
                raise SyntaxError("", (path, node.lineno, 0, ""))
        return [(node.targets[0].id, ast.literal_eval(node.value)) for node in body]
    except SyntaxError as e:
        job.refuse(f"error: {path}, line {e.lineno}: a preset has only lines of the form name = value")
    except ValueError:
        job.refuse(f"error: {path}: a value is not a number, string or boolean")


def literal(text):
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check(condition, message):
    """Raises ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_settings(dtype, max_response_tokens, **at_least_one):
    """Raises ValueError, naming the constant, for a value that no run can have."""
    check(dtype in ("float32", "bfloat16"), f"--dtype={dtype}: the choices are float32 and bfloat16")
    for name, value in {"max_response_tokens": max_response_tokens, **at_least_one}.items():
        check(value >= 1, f"--{name}={value}: it must be at least 1")


@contextmanager
def one_line_errors():
    """Around reading input: what is wrong with it is said in one line, exit status 1. Not for use around computation."""
    try:
        yield
    except (OSError, ValueError) as e:
        sys.exit(f"error: {' '.join(str(e).split())}")


def progress(iterable=None, **kwargs):
    """tqdm of rank 0, but a log file gets a line every 30 seconds instead of ten a second."""
    return tqdm(iterable, mininterval=0.2 if sys.stderr.isatty() else 30, disable=job.rank > 0, **kwargs)


# ---- files -------------------------------------------------------------------------------------------------------

def read_jsonl(path, keys):
    """List of the objects in a .jsonl file, each with at least `keys`. Raises ValueError naming file and line."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    rows = []
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                row = json.loads(line)
            except ValueError as e:
                raise ValueError(f"{path}, line {number}: not valid JSON: {e}") from None
            for key in keys:
                check(isinstance(row, dict) and key in row, f"{path}, line {number}: no {key!r} in it")
            rows.append(row)
    check(rows, f"{path}: empty")
    return rows


@contextmanager
def whole_file(path, mode="w"):
    """Open a file for writing that appears under its name complete, or not at all."""
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    temporary = f"{path}.tmp"
    try:
        with open(temporary, mode) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        sync_folder(path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


@contextmanager
def whole_folder(path):
    """The same for a folder: yields a temporary one that takes the name `path` when the block ends well. All ranks call it, may
    write into the one folder, and go on when it is there."""
    temporary, old = f"{path}.tmp", f"{path}.old"
    if job.rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)  # a killed run's
        os.makedirs(temporary)
    job.barrier()
    patience = time.time() + 60  # a network file system may know late
    while not os.path.isdir(temporary):
        check(time.time() < patience, f"{temporary} is not there on {job.machine}: it must be on a file system that all share")
        time.sleep(1)
    try:
        yield temporary
        job.barrier()
        if job.rank == 0:
            for name in os.listdir(temporary):
                with open(os.path.join(temporary, name), "rb") as f:
                    os.fsync(f.fileno())
            sync_folder(os.path.join(temporary, "."))
            if os.path.isdir(path):
                shutil.rmtree(old, ignore_errors=True)
                os.rename(path, old)
            os.rename(temporary, path)
            sync_folder(path)
        job.barrier()
    finally:
        if job.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
            if os.path.isdir(path):
                shutil.rmtree(old, ignore_errors=True)
            elif os.path.isdir(old):
                os.rename(old, path)  # between the two renames something went wrong


def sync_folder(path):
    """Bring the entries of the folder that `path` lies in to the disk: a rename isn't there before that."""
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_jsonl(path, rows):
    with whole_file(path) as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---- grading -----------------------------------------------------------------------------------------------------

def start_grading_together(rows, responses):
    """Begin to grade a batch in the background, each rank its part. Returns a function that waits for all ranks and returns
    Graded of the whole batch on each of them."""
    mine = slice(job.rank, None, job.world)
    wait = start_grading(rows[mine], [r.text for r in responses[mine]], [r.finished for r in responses[mine]])

    def gathered():
        whole = Graded(*([None] * len(rows) for _ in Graded._fields))
        for rank, part in enumerate(job.gather(wait())):
            for everything, values in zip(whole, part):
                everything[rank::job.world] = values
        return whole
    return gathered


# ---- prompts -----------------------------------------------------------------------------------------------------

def load_prompts(task, split, tokenizer, max_prompt_tokens, drop_long_prompts, context):
    """Rows of data/<task>/<split>.jsonl, each with "tokens", its prompt's token ids (list of int).

    A prompt that is longer than max_prompt_tokens (0: no limit), or than the model's `context` tokens, is an error, or
    left out with a message if drop_long_prompts. Raises FileNotFoundError or ValueError with one line.
    """
    path = os.path.join("data", task, f"{split}.jsonl")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file; make it with: python prepare.py --task={task}")
    rows = read_jsonl(path, ("id", "task", "prompt", "answer"))
    ids = set()
    for number, row in enumerate(rows, 1):
        check(row["id"] not in ids, f"{path}, line {number}: id {row['id']!r} stands there a second time")
        ids.add(row["id"])
        check(row["task"] in REWARDS, f"{path}, line {number}: task {row['task']!r} has no reward; reward.py's REWARDS has "
              f"{', '.join(REWARDS)}")
        check(isinstance(row["prompt"], str) and isinstance(row["answer"], str),
              f"{path}, line {number}: prompt and answer must be strings")
        check(row["prompt"], f"{path}, line {number}: the prompt is empty")
    limit = min(max_prompt_tokens or context, context)
    for row, tokens in zip(rows, tokenizer([r["prompt"] for r in rows], add_special_tokens=False)["input_ids"]):
        row["tokens"] = tokens
    long = [i for i, row in enumerate(rows) if len(row["tokens"]) > limit]
    if long and not drop_long_prompts:
        raise ValueError(f"{path}, line {long[0] + 1}: the prompt has {len(rows[long[0]]['tokens'])} tokens, the limit is "
                         f"{limit} ({len(long)} of {len(rows)} are longer); raise --max_prompt_tokens (the model's context "
                         f"leaves {context}), or leave them out with --drop_long_prompts=True")
    if long:
        print(f"{path}: {len(long)} of {len(rows)} prompts have more than {limit} tokens and are left out")
        rows = [row for row in rows if len(row["tokens"]) <= limit]
        check(rows, f"{path}: no prompt is left under {limit} tokens; raise --max_prompt_tokens")
    return rows


def open_model(path_or_hub_name):
    """(local path, model.Config, tokenizer) of a checkpoint. Raises FileNotFoundError or ValueError with one line."""
    from transformers import AutoTokenizer

    from model import Config, check_weights, resolve
    path = resolve(path_or_hub_name)
    config, tokenizer = Config.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    check(len(tokenizer) <= config.vocab_size, f"{path}: the tokenizer has {len(tokenizer)} entries, the model's vocabulary "
          f"only {config.vocab_size}; they don't belong together")
    check_weights(path)
    return path, config, tokenizer


def subset(rows, number, seed):
    """So many rows (0: all) by a hash of their ids, in their order: not the file's first, which may be of one kind, and so that
    a smaller subset is part of every larger one."""
    by_hash = sorted(rows, key=lambda row: sampling_seed(seed, "subset", row["id"]))
    chosen = {row["id"] for row in by_hash[:number or None]}
    return [row for row in rows if row["id"] in chosen]


def sampling_seed(*key):
    """A 63-bit seed that depends on (seed, step, prompt, sample ...) alone, so any part of a run can be repeated.
    A hash, because neighbouring seeds must not collide between prompts or samples."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest()) >> 1


# ---- fingerprints ------------------------------------------------------------------------------------------------

def fingerprint_prompts(rows):
    """SHA-256 over what stage 1 saw of each prompt: its id, task, tokens and answer."""
    seen = [[row["id"], row["task"], row["tokens"], row["answer"]] for row in rows]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def fingerprint_reward():
    """SHA-256 of reward.py. Stage 1 grades its samples anew when it has changed, without sampling."""
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "reward.py"), "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
