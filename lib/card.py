"""The model card of a trained model, and its upload to the Hugging Face hub."""
import json
import os

from lib.files import atomic_file, read_jsonl
from lib.report import (
    accuracy,
    constants,
    evaluated_afterwards,
    read_evaluations,
    what_was_run,
)

from huggingface_hub import create_repo, upload_folder

PLAIN = {"format": "Prompts are plain text, as in training: a base model knows no chat template.",
         "transformers": '''input_ids = tokenizer(prompt, return_tensors="pt").input_ids''',
         "vllm": "[output] = llm.generate([prompt], params)"}
CHAT = {"format": "Prompts are user messages in the model's chat template.",
        "transformers": '''messages = [{"role": "user", "content": prompt}]
input_ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                          return_tensors="pt", return_dict=True).input_ids''',
        "vllm": 'messages = [{"role": "user", "content": prompt}]\n'
                "[output] = llm.chat(messages, params)"}


def model_card(folder, training, metrics):
    """The text of README.md for the model of a run, with the YAML header that the hub reads.

    folder: the run's; training: what goes to training.json; metrics: the lines of metrics.jsonl.
    """
    c = training["constants"]
    name, base = c["push_to_hub"] or os.path.join(folder, "model"), c["model"]
    evaluations = read_evaluations(folder)
    prompt = evaluations[-1][1][0]["prompt"] if evaluations else "..."
    how = CHAT if c["chat_template"] else PLAIN
    of_hub = "" if os.path.isdir(base) else f"base_model: {base}\n"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
{of_hub}tags:
- reinforcement-learning
- reasoning
---

# {os.path.basename(name) if c["push_to_hub"] else name}

{base}, trained by reinforcement learning on the task {c["task"]}.

{accuracy(metrics, evaluations)}
{evaluated_afterwards(folder)}
## How to use it

{how["format"]} With transformers:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")
prompt = {prompt!r}
{how["transformers"]}
output = model.generate(input_ids, max_new_tokens={c["max_response_tokens"]}, do_sample=False)
print(tokenizer.decode(output[0, input_ids.shape[1]:], skip_special_tokens=True))
```

With vLLM:

```python
from vllm import LLM, SamplingParams

llm = LLM("{name}", generation_config="vllm")
prompt = {prompt!r}
params = SamplingParams(temperature=0, max_tokens={c["max_response_tokens"]})
{how["vllm"]}
print(output.outputs[0].text)
```

## How it was made

With A\\*-PO ([arXiv 2505.20686](https://arxiv.org/abs/2505.20686)), or the baseline whose constants
these are. {sum(m["seconds_step"] for m in metrics) / 3600:.2f} hours of training steps.

{what_was_run(metrics, training)}
{constants(training)}"""


def rewrite_card(folder):
    """Write the model card of a finished run anew, with what evaluate.py has measured."""
    with open(os.path.join(folder, "model", "training.json")) as f:
        training = json.load(f)
    metrics = read_jsonl(os.path.join(folder, "metrics.jsonl"), ("step",))
    with atomic_file(os.path.join(folder, "model", "README.md")) as f:
        f.write(model_card(folder, training, metrics))


def upload(name, folder):
    """Upload a model's folder to the hub. Without a hub the model stays where it is: a warning."""
    try:
        create_repo(name, exist_ok=True)
        upload_folder(repo_id=name, folder_path=folder)
        print(f"uploaded {folder} to {name}")
    except Exception as e:  # offline, no token, no access: the remedy is the same
        print(f"warning: the hub did not take {name} ({type(e).__name__}); the model is in {folder}"
              f", and this uploads it: hf upload {name} {folder}")
