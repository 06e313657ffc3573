"""Stage-1 data in the columns of the A*-PO paper's repository, one row per prompt:

    prompt                      a list of messages; the "content" of the first is the prompt's text
    reward_model                {"ground_truth": the answer, ...}
    response_0, response_1 ...  the responses, text
    eval_0, eval_1 ...          their rewards

On the Hugging Face hub: Cornell-AGI/gsm8k_size_qwen2.5_1.5b_eval and its sisters. No column says
whether a response ended by itself: those that are shorter than the limit are taken to have.
"""
import os

from lib.cli import check


def read_published(source, rows, n, tokenizer, max_response_tokens):
    """The first n responses to each prompt of `rows` that the data set has:
    {(prompt id, sample number): {"sample", "text", "length", "finished", "published": reward}}.

    source: a .parquet file or a hub name; rows: data rows, found again by their prompts' text.
    Raises OSError or ValueError with one line.
    """
    import datasets  # takes seconds to import
    if os.path.exists(source) or source.endswith(".parquet"):
        check(os.path.isfile(source), f"--responses_from={source}: no such file")
        try:
            table = datasets.Dataset.from_parquet(source)
        except Exception as e:
            raise ValueError(f"{source}: not a parquet file ({type(e).__name__})") from e
    else:
        try:
            table = datasets.load_dataset(source, split="train")
        except Exception as e:  # offline, no such data set, no access: the remedy is the same
            raise OSError(f"the hub did not give {source} ({type(e).__name__}); download its "
                          ".parquet file, and pass its path as --responses_from") from e
    wanted = ["prompt", *(f"{name}_{i}" for name in ("response", "eval") for i in range(n))]
    missing = [name for name in wanted if name not in table.column_names]
    check(not missing, f"{source} has no column {', '.join(missing)}, only "
          f"{', '.join(table.column_names)}")
    ids = {row["prompt"].strip(): row["id"] for row in rows}
    samples, found = {}, set()
    for published in table:
        prompt_id = ids.get(published["prompt"][0]["content"].strip())
        if prompt_id is None:
            continue
        found.add(prompt_id)
        texts = [published[f"response_{i}"] for i in range(n)]
        lengths = [len(tokens) + 1 for tokens in tokenizer(texts)["input_ids"]]  # 1: EOS
        for i in range(n):
            samples[prompt_id, i] = {
                "sample": i, "text": texts[i], "length": min(lengths[i], max_response_tokens),
                "finished": lengths[i] <= max_response_tokens,
                "published": float(published[f"eval_{i}"])}
    check(found, f"{source}: none of its prompts is in data/; are task and model those that it was "
          "made with?")
    print(f"{source}: responses to {len(found):,} of {len(rows):,} prompts; "
          f"{len(table) - len(found):,} of its prompts are not used")
    return samples


def push_responses(name, rows, samples):
    """Upload responses to the hub data set `name`. rows: those with all samples; samples: as
    read_published returns them, with "reward"."""
    import datasets
    try:
        datasets.Dataset.from_list(published_rows(rows, samples)).push_to_hub(name)
    except Exception as e:  # offline, no access: the files of stage 1 are complete
        print(f"warning: the hub did not take {name} ({type(e).__name__}: "
              f"{' '.join(str(e).split())[:200]}); the same command tries again")


def published_rows(rows, samples):
    """Responses in the paper's columns, one dictionary per prompt."""
    table = {row["id"]: {
        "data_source": row["task"], "prompt": [{"role": "user", "content": row["prompt"]}],
        "reward_model": {"style": "rule", "ground_truth": row["answer"]}} for row in rows}
    for (prompt_id, i), s in sorted(samples.items()):
        if prompt_id in table:
            table[prompt_id] |= {f"response_{i}": s["text"], f"eval_{i}": s["reward"]}
    return list(table.values())
