r"""MATH (Hendrycks et al. 2021, arXiv 2103.03874), and the benchmarks that are graded like it.

    python prepare.py --task=math                        # train and test
    python prepare.py --task=math500,minerva_math,amc23  # benchmarks: a test split each

Prompts are those of the A*-PO paper's code: the problem and an instruction, no chat template.
"""
from reward import last_boxed
from reward import math as reward  # noqa: F401

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."
# On the Hugging Face hub: data set, configuration, split.
SPLITS = {split: ("DigitalLearningGmbH/MATH-lighteval", "default", split)
          for split in ("train", "test")}
BENCHMARKS = {
    "math500": ("HuggingFaceH4/MATH-500", "default", "test"),
    "minerva_math": ("math-ai/minervamath", "default", "test"),
    "olympiadbench": ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
    "amc23": ("math-ai/amc23", "default", "test"),
    "aime24": ("HuggingFaceH4/aime_2024", "default", "train"),
    "aime25": ("math-ai/aime25", "default", "test"),
    "hmmt_feb_2024": ("MathArena/hmmt_feb_2024", "default", "train"),
    "hmmt_feb_2025": ("MathArena/hmmt_feb_2025", "default", "train"),
    "hmmt_nov_2025": ("MathArena/hmmt_nov_2025", "default", "train"),
}


def rows(split):
    """split: "train", "test", or the name of a benchmark."""
    from datasets import load_dataset  # takes seconds to import
    name, configuration, hub_split = (SPLITS | BENCHMARKS)[split]
    return map(row, load_dataset(name, configuration, split=hub_split))


def row(original):
    """A data row of a row of any of these data sets, which name their fields differently."""
    get = original.get
    if "final_answer" in original:  # OlympiadBench: several answers, and perhaps a context
        question = "\n".join(filter(None, (original["context"], original["question"])))
        answer, solution = ", ".join(original["final_answer"]), "\n".join(get("solution") or [])
    else:
        question, solution = get("problem") or original["question"], get("solution") or ""
        answer = original["answer"] if "answer" in original else last_boxed(original["solution"])
    subject = (get("subject") or get("type") or get("subfield")
               or ", ".join(get("problem_type") or ()))
    return {"prompt": f"{question} {INSTRUCTION}", "solution": solution,
            "answer": "" if answer is None or answer != answer else str(answer),  # NaN: a null
            **({"level": str(get("level")).removeprefix("Level ")} if get("level") else {}),
            **({"subject": subject} if subject else {})}
