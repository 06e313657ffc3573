"""GSM8K: word problems of grade school (Cobbe et al. 2021, arXiv 2110.14168).

Prompts are those of the A*-PO paper's code: the question and an instruction, no chat template.
"""
from reward import gsm8k as reward  # noqa: F401

INSTRUCTION = 'Let\'s think step by step and output the final answer after "####".'


def rows(split):
    from datasets import load_dataset  # takes seconds to import
    return map(row, load_dataset("openai/gsm8k", "main", split=split))


def row(original):
    """A data row of a row of the data set, whose answer is the worked solution."""
    return {"prompt": f"{original['question']} {INSTRUCTION}", "solution": original["answer"],
            "answer": original["answer"].split("####")[-1].strip().replace(",", "")}
