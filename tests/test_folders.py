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
from lib.files import read_json, write_jsonl
from lib.tables import results_folder
from lib.weights import find_model, fingerprint, stop_ids
from model import Qwen2, open_model
from prepare import byte_tokenizer

import pytest
import torch
from conftest import cpu_only, random_model, tiny_config
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from test_algorithm import arguments, train  # noqa: F401 (a fixture)
from test_stages import error

pytestmark = cpu_only
EMBEDDING = "model.embed_tokens.weight"
SHAPE = {"batch_size": 8, "mini_batch_size": 4}
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.content }}>{% endfor %}{{ thinking }}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model's folder in the current one, which has a prompt, too."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    random_model(tiny_config(vocab_size=300)).save_pretrained("model")
    tokenizer.save_pretrained("model")
    for split in ("train", "test"):
        write_jsonl(f"data/arithmetic/{split}.jsonl", [
            {"id": f"{split}/0", "task": "arithmetic", "prompt": "10+20=?\n", "answer": "30"}])
    return tmp_path / "model"


def change_json(path, **changes):
    path.write_text(json.dumps(read_json(path) | changes))


# ---- in ------------------------------------------------------------------------------------------

def test_weights_in_the_forms_that_are_published(folder):
    """A tied head in another file than the embedding; the frequencies that old checkpoints hold."""
    model, file = Qwen2.from_pretrained(folder), folder / "model.safetensors"
    weights = load_file(file)
    file.unlink()
    parts = {"a.safetensors": weights, "b.safetensors": {
        "lm_head.weight": weights[EMBEDDING].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}}
    for name, tensors in parts.items():
        save_file(tensors, folder / name, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {key: name for name, tensors in parts.items() for key in tensors}}))
    open_model(folder)
    for a, b in zip(model.parameters(), Qwen2.from_pretrained(folder).parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("change, message", [
    (lambda f: change_json(f / "config.json", quantization_config={}), "quantised weights can't"),
    (lambda f: [(f / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")],
     "model: no tokenizer there"),
    (lambda f: (f / "tokenizer.json").write_text("{"), "model: its tokenizer doesn't open ("),
    (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
     "no .safetensors file there; save_pretrained of transformers makes them"),
    (lambda f: (f / "config.json").rename(f / "adapter_config.json"),
     "model is an adapter: merge it into its base model first"),
    (lambda f: save_file({"lora_A": torch.ones(1)}, f / "adapter_model.safetensors"),
     "model/adapter_model.safetensors: the weights don't fit config.json: not in the model: lora_A")
])
def test_folders_that_do_not_open(change, message, folder, monkeypatch):
    change(folder)
    for stage, settings in ((estimate_value, {}), (train_apo, {}), (evaluate, {})):
        assert message in error(stage, monkeypatch, model="model", **settings)


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
    bos, text = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A",
                                                                            "type_id": 0}}
    rules["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, text],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [257], "tokens": ["<s>"]}}}
    change_json(folder / "tokenizer.json", **rules)
    change_json(folder / "tokenizer_config.json", bos_token="<s>", chat_template=TEMPLATE,
                tokenizer_class="PreTrainedTokenizerFast")
    return AutoTokenizer.from_pretrained(folder)


def test_prompts_begin_as_the_tokenizer_begins_a_text(folder):
    """With one BOS, which a template writes itself; so the model card's call has the same tokens.
    A template's arguments reach it; it is named if it fails, or doesn't know an argument."""
    tokenizer = tokenizer_with_bos(folder)

    def prompt(*template):
        [row] = load_prompts("arithmetic", "test", tokenizer, 0, 99, 9, *template)
        return row["tokens"]

    assert prompt() == [257, *b"10+20=?\n"] == tokenizer("10+20=?\n")["input_ids"]
    assert prompt(True) == [257, *b"<10+20=?\n>"]
    assert prompt(True, '{"thinking": "no"}') == [257, *b"<10+20=?\n>no"]
    for kwargs, message in (('{"think": 1}', None), ('{"thinkin": 1}', "without 'thinkin'"),
                            ("[1]", "JSON object"), ("thinking", "JSON object")):
        if message:
            with pytest.raises(ValueError, match=message):
                prompt(True, kwargs)
    tokenizer.chat_template = "{{ raise_exception('system first') }}"
    with pytest.raises(ValueError, match="has a template that fails .*system first"):
        prompt(True)


def test_the_cards_call():
    """It is that of training: a plain prompt, or a message in the template with its arguments."""
    constants = {"model": "a/b", "task": "x", "max_response_tokens": 9}
    for settings, call in (
            ({"chat_template": False}, "llm.generate(['p'], params)"),
            ({"chat_template": True, "chat_template_kwargs": ""},
             "llm.chat([{'role': 'user', 'content': 'p'}], params)"),
            ({"chat_template": True, "chat_template_kwargs": '{"enable_thinking": false}'},
             "llm.chat([{'role': 'user', 'content': 'p'}], params, "
             "chat_template_kwargs={'enable_thinking': False})")):
        assert f"[output] = {call}\n" in report.model_card("m", constants | settings, "p")


def test_a_response_that_leaves_no_room(folder, monkeypatch):
    for stage in (estimate_value, train_apo, evaluate):
        assert "--max_response_tokens=1024 leaves no room for a prompt" in error(
            stage, monkeypatch, model="model", max_response_tokens=1024)


# ---- out -----------------------------------------------------------------------------------------

def test_what_training_does_not_change_is_copied(train):  # noqa: F811
    """Tokenizer and stop tokens byte for byte, so that the model ends its responses as in training.
    Any checkpoint becomes the same model; one of PPO, without its critic."""
    Path("model/generation_config.json").write_text('{"eos_token_id": [256, 65]}')
    Path("model/chat_template.jinja").write_text(TEMPLATE)
    values = torch.load("out/values.pt")
    values["meta"]["model"] = fingerprint("model")
    torch.save(values, "out/values.pt")
    for stage, out in ((train_apo, "out"), (ppo, "out/ppo")):
        train(stage, out=out, **SHAPE)
        assert export.export(out) == f"{out}/model-000002"
        [older] = [path for path in Path(out, "ckpt").iterdir() if path.name.endswith("1")]
        assert export.export(str(older)) == f"{out}/model-000001"
        for name in os.listdir("model"):
            before, after, of_2, of_1 = (Path(of, name).read_bytes() for of in (
                "model", f"{out}/model", f"{out}/model-000002", f"{out}/model-000001"))
            assert after == of_2, name
            assert len({before, of_1, of_2}) == (3 if name == "model.safetensors" else 1), name
        assert read_json(f"{out}/model-000001/training.json")["steps"] == 1
    Path("model/config.json").write_text(Path("model/config.json").read_text() + "\n")
    with pytest.raises(ValueError, match="model is not the model any more with which out/ckpt/st"):
        export.export("out")
    with pytest.raises(ValueError, match="nowhere is neither a checkpoint nor the folder of a run"):
        export.export("nowhere")


def test_models_that_stop_at_other_tokens_are_not_evaluated_together(folder, monkeypatch):
    """One engine serves them all, with the first one's stop tokens."""
    tokenizer = byte_tokenizer()
    shutil.copytree("model", "other")
    assert stop_ids("model", tokenizer) == {256}
    assert fingerprint("model") == fingerprint("other")
    Path("other/generation_config.json").write_text('{"eos_token_id": [256, 65]}')
    assert stop_ids("other", tokenizer) == {256, 65}
    assert fingerprint("model") != fingerprint("other")
    assert "other has another shape than model, or other tokens that end a response" in error(
        evaluate, monkeypatch, model="model,other")


# ---- stages that follow each other ---------------------------------------------------------------

def test_a_try_writes_nothing(train, capsys):  # noqa: F811
    """--max_steps=0 makes one step: also beside a run that has begun, whose files stay."""
    train(train_apo, **SHAPE)
    before = {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    os.mkdir("new")
    shutil.copy("out/values.pt", "new")
    for out in ("out", "new"):
        with pytest.raises(SystemExit) as e:
            train(train_apo, out=out, **SHAPE | {"max_steps": 0, "save_rollouts": 1})
        assert not e.value.code and "one step with these settings went well" in (
            capsys.readouterr().out)
    assert before == {p: p.read_bytes() for p in Path("out").rglob("*") if p.is_file()}
    assert os.listdir("new") == ["values.pt"]


def test_a_finished_run(train, capsys):  # noqa: F811
    """It advises what is possible: with a decaying learning rate there are no more steps."""
    train(train_apo, **SHAPE)
    for lr_decay, advice in ((True, "2 steps; start anew with --resume=False or another --out"),
                             (False, "2 steps; raise --max_steps to continue, or start anew")):
        train(train_apo, lr_decay=lr_decay, resume=False, **SHAPE)
        with pytest.raises(SystemExit):
            train(train_apo, lr_decay=lr_decay, **SHAPE)
        assert f"out is trained: {advice}" in capsys.readouterr().out
    os.remove("out/metrics.jsonl")
    with pytest.raises(SystemExit, match="metrics.jsonl is missing, but out/ckpt/step-000002 cont"):
        train(train_apo, lr_decay=False, **SHAPE)


def test_settings_of_another_stage_are_named(folder, monkeypatch, capsys):
    """The template where prompts differ by it, not their checksum; an evaluation warns of it."""
    values = {"ids": ["train/0"], "rewards": torch.ones(1, 2), "lengths": torch.ones(1, 2),
              "finished": torch.ones(1, 2), "v_star": torch.ones(1)}
    meta = {"model": fingerprint("model"), "prompts": "other", "chat_template": True,
            "chat_template_kwargs": "", "max_prompt_tokens": 0}
    os.makedirs("out/arithmetic")
    torch.save({**values, "meta": meta}, "out/arithmetic/values.pt")
    assert "another chat_template than this run's (True, here False)" in error(
        train_apo, monkeypatch, model="model")
    assert "sampled with chat_template = True, this run has False" in error(
        estimate_value, monkeypatch, model="model")
    (folder / "training.json").write_text('{"constants": {"chat_template": true}}')
    evaluate.make_jobs(arguments(evaluate, model="model"), "model", ["arithmetic"])
    assert "warning: model was trained with chat_template = True, here it is False" in (
        capsys.readouterr().out)


def test_results_of_a_folder_that_can_not_be_written(folder, monkeypatch):
    assert results_folder("model") == "model"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert results_folder("model") == "out/eval/model"
    assert results_folder(str(folder)) == f"out/eval{folder}"
    assert results_folder("../model") == "out/eval/model"
    assert "which would all be the greedy response" in error(evaluate, monkeypatch, temperature=0)
