r"""The rewards of the A*-PO paper's code, for results that are to be compared with published ones.

    python bench/paper_grader.py out/math/model/eval-math500.jsonl [more files]

The argument is a file of responses that evaluate.py has written. The table shows the accuracy by
this repository's rewards and by the paper's, and how often they differ; --show=5 also prints the
answers of the first five responses on which they differ. The paper's rewards compare strings, where
reward.py compares values: 0.50 is not 1/2 here. The paper's repository is a fork of verl, whose
rules for MATH are those of Hendrycks et al. 2021 (arXiv 2103.03874).
"""
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.answers import last_boxed  # noqa: E402
from lib.cli import configure  # noqa: E402
from lib.files import read_jsonl  # noqa: E402

show = 0  # responses on which the two graders differ
# --------------------------------------------------------------------------------------------------


def gsm8k(response, answer, finished=True):
    """1.0 if the number after the first `#### ` is the answer, but for commas and $."""
    found = re.search(r"#### (-?[0-9.,]+)", response)
    return float(found is not None and found[1].replace(",", "").replace("$", "") == answer)


def math(response, answer, finished=True):
    r"""1.0 if the response ended with EOS and its last `\boxed{}`, normalised, is the answer."""
    boxed = last_boxed(response)
    return float(finished and boxed is not None and is_equal(boxed, answer))


def is_equal(a, b):
    try:
        return normalise(a) == normalise(b)
    except ValueError:  # a form that the rules don't foresee
        return a == b


def normalise(text):
    """An answer in LaTeX by the rules of MATH. Raises ValueError where they are not defined."""
    for old, new in (("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"),
                     ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""),
                     ("\\$", "")):
        text = text.replace(old, new)
    if "\\text{ " in text:  # a unit on the right
        text, *units = text.split("\\text{ ")
        if len(units) != 1:
            raise ValueError("two units")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = "0" + text
    sides = text.split("=")
    if len(sides) == 2 and len(sides[0]) <= 2:  # k = 5
        text = sides[1]
    text = add_braces_to_roots(text).replace(" ", "")
    text = add_braces_to_fractions(text)
    if text == "0.5":
        text = "\\frac{1}{2}"
    if text.count("/") == 1:
        above, below = map(int, text.split("/"))  # ValueError if one is no integer
        if text == f"{above}/{below}":
            text = f"\\frac{{{above}}}{{{below}}}"
    return text


def add_braces_to_roots(text):
    r"""\sqrt3 -> \sqrt{3}"""
    first, *parts = text.split("\\sqrt")
    if "" in parts:
        raise ValueError("a root of nothing")
    return first + "".join("\\sqrt" + (part if part[0] == "{" else f"{{{part[0]}}}{part[1:]}")
                           for part in parts)


def add_braces_to_fractions(text):
    r"""\frac12 and \frac1{2} -> \frac{1}{2}. Where too little follows, the text stays as it is."""
    first, *parts = text.split("\\frac")
    if "" in parts:
        raise ValueError("a fraction of nothing")
    result = first
    for part in parts:
        result += "\\frac"
        if part.startswith("{"):
            result += part
        elif len(part) < 2:
            return text
        elif part[1] == "{":
            result += f"{{{part[0]}}}{part[1:]}"
        else:
            result += f"{{{part[0]}}}{{{part[1]}}}{part[2:]}"
    return result


def main(args, files):
    for file in files:
        rights, differ = {"reward.py": [], "the paper's": []}, []
        records = read_jsonl(file, ("task", "answer", "greedy"))
        for record in records:
            grade = {"gsm8k": gsm8k, "math": math}[record["task"]]
            for response in record["greedy"] + record.get("samples", []):
                paper = grade(response["text"], record["answer"], not response["truncated"])
                rights["reward.py"].append(response["reward"] == 1)
                rights["the paper's"].append(paper == 1)
                if paper != response["reward"]:
                    differ.append((record["id"], record["answer"], response, paper))
        n = len(rights["reward.py"])
        shares = ", ".join(f"{sum(x) / n:.1%} right by {name}" for name, x in rights.items())
        print(f"{file}: {n:,} responses, {shares}, {len(differ) / n:.2%} differ")
        for prompt_id, answer, response, paper in differ[:args.show]:
            print(f"  {prompt_id}, answer {answer!r}: {response['reward']:g} by reward.py, "
                  f"{paper:g} by the paper's: ...{response['text'][-200:]!r}")


if __name__ == "__main__":
    paths = [a for a in sys.argv[1:] if not a.startswith("--")]
    sys.argv = [a for a in sys.argv if a.startswith("--") or a == sys.argv[0]]
    main(configure(__file__), paths)
