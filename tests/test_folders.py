"""Models' folders as people have them: what opens, what is refused with one line, and that what
comes out of training has everything that the initial model had."""
import json
import os
import shutil
from pathlib import Path

import estimate_value
import evaluate
import export
import lib.weights
import report
import train_apo
from baselines import ppo
from lib.data import load_prompts
from lib.files import read_json
from lib.tables import results_folder
from lib.weights import EMBEDDING, HEAD, find_model, fingerprint, stop_ids
from model import Qwen2, open_model
from prepare import byte_tokenizer

import pytest
import torch
from conftest import MODEL, OUT, arguments, cpu_only, error, metrics_of
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file

pytestmark = cpu_only
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.content }}>{% endfor %}{{ thinking }}"


@pytest.fixture
def folder(small):
    """The folder of a random model."""
    return small / MODEL


def change_json(path, **changes):
    path.write_text(json.dumps(read_json(path) | changes))


# ---- in ------------------------------------------------------------------------------------------

def test_weights_in_the_forms_that_are_published(folder):
    """A tied head in another file than the embedding; the frequencies that old checkpoints hold. A
    file that is missing is named."""
    model, file = Qwen2.from_pretrained(folder), folder / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    parts = {"a.safetensors": weights, "b.safetensors": {
        HEAD: weights[EMBEDDING].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}}
    for name, tensors in parts.items():
        save_file(tensors, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {key: name for name, tensors in parts.items() for key in tensors}}))
    open_model(folder)
    for a, b in zip(model.parameters(), Qwen2.from_pretrained(folder).parameters(), strict=True):
        assert torch.equal(a, b)
    (folder / "a.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="a.safetensors"):
        open_model(folder)


NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"


def weights(change):
    """A function that changes the weights in a folder."""
    def rewrite(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return rewrite


@pytest.mark.parametrize("change, message", [
    (lambda f: change_json(f / "config.json", quantization_config={}), "quantised weights can't"),
    (lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
     "model: no tokenizer there"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "model: its tokenizer doesn't open ("),
    (lambda f: change_json(f / "config.json", vocab_size=256),
     "the tokenizer has 257 entries, the model's vocabulary only 256"),
    (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
     "no .safetensors file there; save_pretrained of transformers makes them"),
    (lambda f: (f / "config.json").rename(f / "adapter_config.json"),
     "model is an adapter: merge it into its base model first"),
    (lambda f: save_file({"lora_A": torch.ones(1)}, f / "adapter_model.safetensors"),
     "adapter_model.safetensors: the weights don't fit config.json: not in the model: lora_A"),
    # vLLM samples without most weights and says nothing, so every stage checks by itself.
    (weights(lambda w: w.pop(NORM)), f"missing: {NORM}"),
    (weights(lambda w: w.pop(DOWN)), f"missing: {DOWN} (1 in all)"),
    (weights(lambda w: w.update({"model.extra": torch.ones(2)})), "not in the model: model.extra"),
    (weights(lambda w: w.update({NORM: torch.ones(3)})), f"{NORM} has shape [3]"),
    (weights(lambda w: w.update({HEAD: w[EMBEDDING] + 1})), f"{HEAD} differs from {EMBEDDING}"),
    (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1]),
     "model.safetensors: not a whole safetensors file")])
def test_folders_that_do_not_open(change, message, folder):
    """One line names the folder, in every stage; and such weights aren't loaded."""
    change(folder)
    for stage in (estimate_value, train_apo, evaluate):
        said = error(stage, model=MODEL)
        assert message in said and MODEL in said
    if "tokenizer" not in message:
        with pytest.raises((FileNotFoundError, ValueError)):
            Qwen2.from_pretrained(MODEL)


def test_a_hub_models_files(folder, monkeypatch):
    """A chat template may be a file of its own; what is in folders is for other software."""
    for name in ("chat_template.jinja", "onnx/config.json", "README.md", "pytorch_model.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")

    def snapshot_download(name, allow_patterns, ignore_patterns):
        files = [str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns,
                                        ignore_patterns=ignore_patterns):
            Path("cache", file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, Path("cache", file))
        return "cache"

    monkeypatch.setattr(lib.weights, "snapshot_download", snapshot_download)
    assert find_model("some/model") == "cache"
    assert {*os.listdir("cache")} == {"chat_template.jinja", "config.json", "model.safetensors",
                                      "tokenizer.json", "tokenizer_config.json"}
    (folder / "config.json").rename(folder / "adapter_config.json")
    shutil.rmtree("cache")
    with pytest.raises(ValueError, match="an adapter"):
        find_model("some/model")


# ---- prompts -------------------------------------------------------------------------------------

def tokenizer_with_bos(folder):
    """One that begins every text with <s>, as Llama's does."""
    from transformers import AutoTokenizer
    rules = read_json(folder / "tokenizer.json")
    rules["added_tokens"].append({"id": 257, "content": "<s>", "special": True, "lstrip": False,
                                  "single_word": False, "rstrip": False, "normalized": False})
    bos, text = ({kind: {"id": name, "type_id": 0}}
                 for kind, name in (("SpecialToken", "<s>"), ("Sequence", "A")))
    rules["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}}}
    change_json(folder / "tokenizer.json", **rules)
    change_json(folder / "tokenizer_config.json", bos_token="<s>", chat_template=TEMPLATE,
                tokenizer_class="PreTrainedTokenizerFast")
    return AutoTokenizer.from_pretrained(folder)


def test_prompts_begin_as_the_tokenizer_begins_a_text(folder):
    """With one BOS, which a template writes itself. A template's arguments reach it; it is named if
    it fails, or doesn't know an argument. The model card's call is that of training."""
    tokenizer = tokenizer_with_bos(folder)

    def prompt(*template):
        return load_prompts("arithmetic", "train", tokenizer, 0, 99, 9, *template)[0]["tokens"]

    def call(*template):
        names = ("chat_template", "chat_template_kwargs")
        constants = {"model": "a/b", "task": "x", "max_response_tokens": 9}
        return report.model_card("m", constants | dict(zip(names, template, strict=False)), "p")

    chat = "[output] = llm.chat([{'role': 'user', 'content': 'p'}], params"
    assert prompt() == [257, *b"10+20=?\n"] == tokenizer("10+20=?\n")["input_ids"]
    assert "[output] = llm.generate(['p'], params)\n" in call(False)
    assert prompt(True) == [257, *b"<10+20=?\n>"] and f"{chat})\n" in call(True, "")
    assert prompt(True, '{"thinking": "no"}') == [257, *b"<10+20=?\n>no"]
    assert (f"{chat}, chat_template_kwargs={{'enable_thinking': False}})\n"
            in call(True, '{"enable_thinking": false}'))
    for kwargs, message in (('{"think": 1}', "without 'think'"), ("[1]", "JSON object"),
                            ("thinking", "JSON object")):
        with pytest.raises(ValueError, match=message):
            prompt(True, kwargs)
    tokenizer.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(ValueError, match="has a template that fails .*system first"):
        prompt(True)


# ---- out -----------------------------------------------------------------------------------------

def test_what_training_does_not_change_is_copied(train):
    """Tokenizer and stop tokens byte for byte, so that the model ends its responses as in training.
    Any checkpoint becomes the same model; one of PPO, without its critic."""
    Path(MODEL, "generation_config.json").write_text('{"eos_token_id": [256, 65]}')
    Path(MODEL, "chat_template.jinja").write_text(TEMPLATE)
    values = torch.load(f"{OUT}/values.pt")
    values["meta"]["model"] = fingerprint(MODEL, byte_tokenizer())
    torch.save(values, f"{OUT}/values.pt")
    for stage, out in ((train_apo, OUT), (ppo, "out/ppo")):
        train(stage, out=out)
        assert export.export(out) == f"{out}/model-000002"
        [older] = [path for path in Path(out, "ckpt").iterdir() if path.name.endswith("1")]
        assert export.export(str(older)) == f"{out}/model-000001"
        for name in os.listdir(MODEL):
            before, after, of_2, of_1 = (Path(of, name).read_bytes() for of in (
                MODEL, f"{out}/model", f"{out}/model-000002", f"{out}/model-000001"))
            assert after == of_2, name
            assert len({before, of_1, of_2}) == (3 if name == "model.safetensors" else 1), name
        assert read_json(f"{out}/model-000001/training.json")["steps"] == 1
    shutil.copytree(MODEL, "moved/model")
    Path(MODEL, "config.json").write_text(Path(MODEL, "config.json").read_text() + "\n")
    for here, message in ((MODEL, "model is not the model with which out/arithm"),
                          ("gone", "data/arithmetic/model: no config.json there")):
        os.rename(MODEL, here)
        with pytest.raises(ValueError, match=f"{message}.*add --model=FOLDER"):
            export.export(OUT)
    before = Path(OUT, "model-000002/model.safetensors").read_bytes()
    shutil.rmtree(f"{OUT}/model-000002")
    export.main(["--model=moved/model", OUT])
    assert Path(OUT, "model-000002/model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match="nowhere is neither a checkpoint nor the folder of a run"):
        export.export("nowhere")


def test_a_folder_may_have_any_name(train):
    """It is no pattern, and no list. A model's folder may be a link to another disk, and may hold
    folders beside the tokenizer's files."""
    out, model = "out/lr[4e-4]*", "m[1], ~/model"
    shutil.copytree(MODEL, model)
    os.mkdir(f"{model}/tokenizer.old")
    os.makedirs("disk/model")
    os.makedirs(out)
    os.symlink(os.path.abspath("disk/model"), f"{out}/model")
    shutil.copy(f"{OUT}/values.pt", out)
    for steps in (1, 2):
        train(train_apo, out=out, model=model, lr_decay=False, max_steps=steps)
    assert read_json(f"{out}/model/training.json")["steps"] == len(metrics_of(out)) == 2
    assert os.path.isfile(f"{out}/model/tokenizer.json") and not os.path.islink(f"{out}/model")
    assert export.export(out) == f"{out}/model-000002"
    os.remove(f"{model}/tokenizer.json")
    os.remove(f"{model}/vocab.json") if os.path.exists(f"{model}/vocab.json") else None
    assert error(evaluate, model=model).startswith(f"error: {model}: no tokenizer there")


def test_models_that_stop_at_other_tokens_are_not_evaluated_together(folder):
    """One engine serves them all, with the first one's stop tokens."""
    tokenizer = byte_tokenizer()
    shutil.copytree(MODEL, "other")
    assert stop_ids(MODEL, tokenizer) == {256}
    assert fingerprint(MODEL, tokenizer) == fingerprint("other", tokenizer)
    Path("other/generation_config.json").write_text('{"eos_token_id": [256, 65]}')
    assert stop_ids("other", tokenizer) == {256, 65}
    assert fingerprint(MODEL, tokenizer) != fingerprint("other", tokenizer)
    assert f"other has another shape or other tokens than {MODEL}, or others that end a" in error(
        evaluate, model=f"{MODEL},other")
    other = Path("other/tokenizer.json")
    changed = json.loads(other.read_text())
    vocab = changed["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    other.write_text(json.dumps(changed))
    assert f"--kl_to=other has other tokens than {MODEL}" in error(
        evaluate, model=MODEL, kl_to="other")


def test_samples_end_at_the_same_tokens(folder):
    """Stage 1 does not add samples to those of a model that ended its responses at another one."""
    change_json(folder / "tokenizer_config.json", eos_token="a")
    assert "values.pt was sampled with model = " in error(estimate_value)
    assert "values.pt was made with another model than this run's" in error(train_apo)


def test_results_of_a_folder_that_can_not_be_written(folder, monkeypatch):
    assert results_folder(MODEL) == MODEL
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert results_folder(MODEL) == f"out/eval/{MODEL}"
    assert results_folder(str(folder)) == f"out/eval{folder}"
    assert results_folder("../model") == "out/eval/model"


# ---- runs in a folder ----------------------------------------------------------------------------

def test_a_try_writes_nothing(train, capsys):
    """--max_steps=0 makes one step: also beside a run that has begun, whose files stay."""
    train(train_apo)
    before = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    os.mkdir("new")
    shutil.copy(f"{OUT}/values.pt", "new")
    for out in (OUT, "new"):
        with pytest.raises(SystemExit) as e:
            train(train_apo, out=out, max_steps=0, save_rollouts=1)
        assert not e.value.code and "one step with these settings went well" in (
            capsys.readouterr().out)
    assert before == {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    assert os.listdir("new") == ["values.pt"]
    with pytest.raises(SystemExit):
        train(ppo, out="never", max_steps=0)
    assert "never/values.pt: no such file" in error(train_apo, out="never")
    assert not os.path.exists("never")


def test_a_run_continues_with_a_copy_of_its_model(train):
    """Under any path, as long as it is the same model."""
    train(train_apo, lr_decay=False)
    shutil.copytree(MODEL, "copy")
    for steps, model in ((3, "copy"), (4, f"{MODEL}/")):
        train(train_apo, lr_decay=False, max_steps=steps, model=model)
        assert len(metrics_of(OUT)) == steps
    Path("copy/config.json").write_text(Path("copy/config.json").read_text() + "\n")
    values = torch.load(f"{OUT}/values.pt")
    values["meta"]["model"] = fingerprint("copy", byte_tokenizer())
    torch.save(values, f"{OUT}/values.pt")
    with pytest.raises(SystemExit, match=f"with model = '{MODEL}/', this run has 'copy'"):
        train(train_apo, lr_decay=False, max_steps=5, model="copy")


def test_settings_of_another_stage_are_named(folder, capsys):
    """The template where prompts differ by it, not their checksum; an evaluation warns of it."""
    values = torch.load(f"{OUT}/values.pt")
    values["meta"] |= {"prompts": "other", "chat_template": True}
    torch.save(values, f"{OUT}/values.pt")
    assert "another chat_template than this run's (True, here False)" in error(train_apo)
    assert "sampled with chat_template = True, this run has False" in error(estimate_value)
    (folder / "training.json").write_text('{"constants": {"chat_template": true}}')
    evaluate.make_jobs(arguments(evaluate), MODEL, ["arithmetic"])
    assert f"warning: {MODEL} was trained with chat_template = True, here it is False" in (
        capsys.readouterr().out)
