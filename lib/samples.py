"""Responses that are on the disk as soon as they are finished: an interrupted job continues."""
import json
import os
import time
from glob import glob

from lib.cli import progress
from lib.distributed import all_gather, set_phase
from lib.files import read_jsonl


def sample(engine, todo, pattern, settings, max_response_tokens, temperature, desc="sampling"):
    """Sample a response for each (row, sample number, seed) of todo, on all engines. A collective.

    Each engine appends to a file of its own, `pattern` with its number for the *: first a line with
    the settings, then one per response, as soon as it is finished. Returns (seconds, tokens).
    """
    set_phase(desc)
    begin, tokens = time.time(), 0
    todo = engine.share(todo)
    stream = engine.stream([row["tokens"] for row, _, _ in todo], [seed for _, _, seed in todo],
                           max_response_tokens, temperature)
    os.makedirs(os.path.dirname(pattern), exist_ok=True)
    file = pattern.replace("*", str(engine.engine_index))
    try:
        with open(file if engine.tp_rank == 0 else os.devnull, "a") as f:
            if f.tell() == 0:
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
        raise KeyboardInterrupt(f"\nstopped; all finished responses are in {os.path.dirname(file)}"
                                ": run the same command again to continue") from None
    tokens = sum(all_gather(tokens if engine.tp_rank == 0 else 0))
    return time.time() - begin, tokens


def read_parts(pattern):
    """[(path, settings, responses)] of the files that sample() has written."""
    parts = []
    for path in sorted(glob(pattern)):
        with open(path, "rb+") as f:
            f.truncate(f.read().rfind(b"\n") + 1)  # the last line may be incomplete after a kill
        if os.path.getsize(path):
            settings, *lines = read_jsonl(path, ())
            parts.append((path, settings, lines))
    return parts
