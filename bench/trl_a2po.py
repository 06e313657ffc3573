"""TRL's side of bench/trl.py, for an environment that has trl: both stages of its A2PO trainer.

    python bench/trl_a2po.py <workload of bench/trl.py, as JSON>

Prints one JSON object: the seconds of stage 1 for so many prompts, and those of each update.
"""
import json
import os
import sys
import time
from pathlib import Path

sys.path.pop(0)  # bench/, which has a trl.py
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
# Leave malloc as it is: our lib/__init__.py would tune it, which TRL's users don't do.
os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", "")

import reward

import torch
from datasets import Dataset
from transformers import AutoTokenizer, TrainerCallback
from trl.experimental.a2po import A2POConfig, A2POTrainer


class Clock(TrainerCallback):
    """When each update began and ended."""
    def __init__(self):
        self.times = []

    def on_step_begin(self, *_, **__):
        self.times.append(time.perf_counter())

    def on_train_end(self, *_, **__):
        self.times.append(time.perf_counter())


def main(w):
    cuda, task = torch.cuda.is_available(), reward.load_task(w["task"])
    tokenizer = AutoTokenizer.from_pretrained(w["model"], padding_side="left")

    def graded(prompts, completions, answer, **_):
        return [task.reward(text, a, True) for text, a in zip(completions, answer, strict=True)]

    def as_the_model_sees_it(prompt):
        return prompt if not w["chat"] else tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True)

    with open(f"data/{w['task']}/train.jsonl") as f:
        rows = [json.loads(line) for line in f]
    dataset = Dataset.from_list([{"prompt": as_the_model_sees_it(r["prompt"]),
                                  "answer": r["answer"]} for r in rows])
    settings = A2POConfig(
        output_dir="trl", per_device_train_batch_size=w["mini_batch"], max_steps=w["updates"],
        learning_rate=w["lr"], beta1=0.5, beta2=1e-3, num_value_samples=8,
        filter_all_incorrect=False, max_completion_length=w["tokens"], gradient_checkpointing=False,
        bf16=cuda or w["chat"], use_cpu=not cuda, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=0, model_init_kwargs={"dtype": "float32"})
    clock = Clock()
    trainer = A2POTrainer(model=w["model"], reward_funcs=graded, args=settings,
                          train_dataset=dataset, processing_class=tokenizer, callbacks=[clock])
    trainer.train_dataset = dataset.select(range(w["prompts"]))
    begin = time.perf_counter()
    trainer._estimate_optimal_values()
    stage_1 = time.perf_counter() - begin
    # Stage 2 looks V* up for every prompt: what stage 1 left out to save time has 0.
    trainer._optimal_values = dict.fromkeys(dataset["prompt"], 0.0) | trainer._optimal_values
    trainer.train_dataset = dataset
    trainer.train()
    updates = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    print(json.dumps({"stage_1": stage_1, "updates": updates}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
