"""Interchange with transformers and its ecosystem: folders, hub, Trainer, adapters."""

import json
import sys

import pytest
import torch
from transformers import Trainer, TrainingArguments

from helpers import REFERENCE_CLASS, image_ids, largest_difference, reference_for, tiny_config, tiny_model
from imagegpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel

ALL_MODELS = pytest.mark.parametrize(
    "model_class", [ImageGPTModel, ImageGPTForCausalImageModeling, ImageGPTForImageClassification]
)


def strictly_loaded(model_class, folder, **options):
    """Load a model; missing, unexpected or mismatched weights fail the test."""
    model, info = model_class.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(info.values()), info
    return model.eval()


# --- Folders ---


@ALL_MODELS
def test_the_reference_reads_our_folder(model_class, tmp_path):
    options = {"shift_inputs": False} if model_class is ImageGPTForImageClassification else {}
    ours = tiny_model(model_class, num_labels=5, **options)
    ours.save_pretrained(tmp_path)
    theirs = strictly_loaded(REFERENCE_CLASS[model_class], tmp_path)
    assert largest_difference(theirs(image_ids())[0], ours(image_ids())[0]) < 1e-5


@ALL_MODELS
def test_we_read_the_references_folder(model_class, tmp_path):
    theirs = reference_for(tiny_model(model_class, num_labels=5))
    theirs.save_pretrained(tmp_path)
    ours = strictly_loaded(model_class, tmp_path)
    assert largest_difference(ours(image_ids())[0], theirs(image_ids())[0]) < 1e-5


@ALL_MODELS
def test_folder_round_trip_is_bit_exact(model_class, tmp_path):
    model = tiny_model(model_class, use_bias=False, add_cross_attention=True, n_inner=20)
    model.save_pretrained(tmp_path)
    loaded = strictly_loaded(model_class, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert loaded.config.use_bias is False
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".safetensors") == ["model.safetensors"]


def test_base_model_and_heads_load_from_each_other(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path / "generative")
    base = strictly_loaded_but_for(ImageGPTModel, tmp_path / "generative", unexpected={"lm_head.weight"})
    expected = model.transformer(image_ids()).last_hidden_state
    assert largest_difference(base(image_ids()).last_hidden_state, expected) == 0
    base.save_pretrained(tmp_path / "base")
    again = strictly_loaded_but_for(ImageGPTForCausalImageModeling, tmp_path / "base", missing={"lm_head.weight"})
    assert largest_difference(again.transformer(image_ids()).last_hidden_state, expected) == 0


def strictly_loaded_but_for(model_class, folder, **expected):
    model, info = model_class.from_pretrained(folder, output_loading_info=True)
    for kind in ("missing", "unexpected"):
        assert set(info[f"{kind}_keys"]) == expected.get(kind, set())
    assert not info["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("direction", ["ours_to_theirs", "theirs_to_ours"])
def test_sharded_folders(direction, tmp_path):
    ours = tiny_model()
    theirs = reference_for(ours)
    writer, reader = (ours, type(theirs)) if direction == "ours_to_theirs" else (theirs, type(ours))
    writer.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded = strictly_loaded(reader, tmp_path)
    assert largest_difference(loaded(image_ids()).logits, ours(image_ids()).logits) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_folders(dtype, tmp_path):
    """Saved by transformers with gains in half precision: the same values here, with norms in float32."""
    theirs = reference_for(tiny_model()).to(dtype)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    ours = strictly_loaded(ImageGPTForCausalImageModeling, tmp_path)
    assert ours.dtype == dtype
    for name, parameter in theirs.named_parameters():
        assert torch.equal(ours.get_parameter(name).to(dtype), parameter), name
    assert ours.transformer.ln_f.weight.dtype == torch.float32
    wide = strictly_loaded(ImageGPTForCausalImageModeling, tmp_path, dtype=torch.float32)
    assert wide.dtype == torch.float32
    assert largest_difference(wide(image_ids()).logits, theirs.float()(image_ids()).logits) < 1e-5
    # And back.
    ours.save_pretrained(tmp_path / "back")
    back = strictly_loaded(REFERENCE_CLASS[ImageGPTForCausalImageModeling], tmp_path / "back", dtype=torch.float32)
    assert largest_difference(back(image_ids()).logits, wide(image_ids()).logits) < 1e-5


def test_mask_buffers_of_transformers_4_are_ignored(tmp_path):
    from safetensors.torch import load_file, save_file

    model = tiny_model()
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    for layer in range(2):
        weights[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 16, 16).tril()
        weights[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded = strictly_loaded(ImageGPTForCausalImageModeling, tmp_path)
    assert largest_difference(loaded(image_ids()).logits, model(image_ids()).logits) == 0
    # The projections' own biases end in "attn.c_attn.bias" and must not fall under the same rule.
    assert torch.equal(loaded.transformer.h[0].attn.c_attn.bias, model.transformer.h[0].attn.c_attn.bias)


def test_weights_of_another_architecture_are_reported(tmp_path, transformers_log):
    tiny_model(n_layer=3).save_pretrained(tmp_path)
    _, info = ImageGPTForCausalImageModeling.from_pretrained(
        tmp_path, config=tiny_config(n_layer=4), output_loading_info=True
    )
    assert any("h.3." in key for key in info["missing_keys"])
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        ImageGPTForCausalImageModeling.from_pretrained(tmp_path, config=tiny_config(n_embd=64, n_layer=3))


# --- Hub ---


def test_push_to_hub_uploads_config_and_weights(monkeypatch, tmp_path):
    """Offline: the captured upload is loaded again."""
    from huggingface_hub import HfApi

    sent = {}

    def create_commit(self, repo_id, operations, **kwargs):
        for operation in operations:
            with operation.as_file() as file:
                sent[operation.path_in_repo] = file.read()
        return "commit"

    class Url(str):
        repo_id = "someone/digits"

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # the tests' user may have no home
    monkeypatch.setattr(HfApi, "create_repo", lambda self, *args, **kwargs: Url("https://example.org/someone/digits"))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    for name in ("create_commit", "create_repo"):  # transformers has its own bound methods
        module = sys.modules["transformers.utils.hub"]
        if hasattr(module, name):
            replacement = {"create_commit": create_commit, "create_repo": lambda self=None, *a, **k: Url("x")}[name]
            monkeypatch.setattr(module, name, lambda *a, r=replacement, **k: r(None, *a, **k))
    tiny_model().push_to_hub("someone/digits")
    assert {"config.json", "model.safetensors"} <= sent.keys()
    assert json.loads(sent["config.json"])["model_type"] == "imagegpt"
    from safetensors.torch import load

    model = ImageGPTForCausalImageModeling(tiny_config()).eval()
    model.load_state_dict(load(sent["model.safetensors"]), strict=True)
    assert largest_difference(model(image_ids()).logits, tiny_model()(image_ids()).logits) == 0


# --- Devices ---


def test_device_map_on_the_cpu(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = strictly_loaded(ImageGPTForCausalImageModeling, tmp_path, device_map="cpu")
    assert largest_difference(loaded(image_ids()).logits, model(image_ids()).logits) == 0


def test_blocks_offloaded_to_the_disk(tmp_path):
    model = tiny_model(n_layer=3)
    model.save_pretrained(tmp_path / "model")
    places = {
        "transformer.wte": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu", "transformer.ln_f": "cpu",
        "transformer.h.0": "cpu", "transformer.h.1": "disk", "transformer.h.2": "disk", "lm_head": "cpu",
    }  # fmt: skip
    loaded = ImageGPTForCausalImageModeling.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offload"
    ).eval()
    assert loaded.transformer.h[2].mlp.c_fc.weight.device.type == "meta"
    with torch.no_grad():
        assert largest_difference(loaded(image_ids()).logits, model(image_ids()).logits) == 0
        prompt = image_ids(pixels=3)
        assert torch.equal(loaded.generate(prompt, do_sample=False), model.generate(prompt, do_sample=False))


def test_blocks_are_not_split_between_devices():
    from accelerate import infer_auto_device_map

    model = tiny_model(n_layer=6)
    block_bytes = sum(p.numel() * 4 for p in model.transformer.h[0].parameters())
    places = infer_auto_device_map(
        model,
        max_memory={"cpu": int(3.5 * block_bytes), "disk": 10**9},
        no_split_module_classes=list(model._no_split_modules),  # accelerate 1.10 knows no sets
    )
    assert set(places.values()) == {"cpu", "disk"}
    assert not any(".attn" in name or ".mlp" in name for name in places)


# --- Training by others ---


class Images(torch.utils.data.Dataset):
    """Eight fixed images with labels for either head."""

    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return 8

    def __getitem__(self, index):
        ids = image_ids(batch=8)[index]
        return {"input_ids": ids, "labels": ids if self.labels == "pixels" else torch.tensor(index % 3)}


@pytest.mark.parametrize("labels", ["pixels", "classes"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_trainer_reports_the_loss_and_trains(labels, accumulation, tmp_path):
    model_class = ImageGPTForCausalImageModeling if labels == "pixels" else ImageGPTForImageClassification
    model = tiny_model(model_class, num_labels=3)
    before = model.state_dict()["transformer.wpe.weight"].clone()
    batch = [Images(labels)[index] for index in range(8)]
    batch = {name: torch.stack([image[name] for image in batch]) for name in batch[0]}
    first = model(**batch).loss.item()
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=8 // accumulation, logging_steps=1,
        gradient_accumulation_steps=accumulation, learning_rate=1e-3, report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=Images(labels))
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    # The whole data set is one step: the first loss is that of the untrained model, in whatever pieces it was fed.
    assert losses[0] == pytest.approx(first, abs=2e-4)
    assert losses[1] < losses[0]
    assert not torch.equal(model.state_dict()["transformer.wpe.weight"], before)
    assert trainer.evaluate(Images(labels))["eval_loss"] < first


# peft 0.21 asks transformers 5.23 by a name that it deprecates.
old_name_in_peft = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def lora(model, targets):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=2, target_modules=targets, fan_in_fan_out=True, lora_dropout=0.0))


@old_name_in_peft
@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
def test_lora_adapters_train_and_merge(targets):
    pytest.importorskip("peft")
    plain = tiny_model()(image_ids()).logits
    model = lora(tiny_model(), targets)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * (1 if len(targets) == 1 else 4)
    assert largest_difference(model(image_ids()).logits, plain) < 1e-6  # an adapter starts as nothing
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    losses = []
    for _ in range(4):
        loss = model(input_ids=image_ids(), labels=image_ids()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    adapted = model.eval()(image_ids()).logits
    assert largest_difference(adapted, plain) > 1e-3
    merged = model.merge_and_unload()
    assert isinstance(merged, ImageGPTForCausalImageModeling)
    assert largest_difference(merged(image_ids()).logits, adapted) < 1e-5


@old_name_in_peft
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")  # peft 0.18, without a network
def test_lora_adapters_save_and_load(tmp_path):
    peft = pytest.importorskip("peft")
    model = lora(tiny_model(), ["c_attn"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert largest_difference(loaded(image_ids()).logits, model(image_ids()).logits) == 0


@old_name_in_peft
def test_lora_adapters_generate():
    pytest.importorskip("peft")
    images = lora(tiny_model(), ["c_attn"]).generate(input_ids=image_ids(pixels=3), do_sample=False)
    assert torch.equal(images, tiny_model().generate(image_ids(pixels=3), do_sample=False))


# --- Auto classes ---

REGISTERED = """
import json, sys, warnings
import torch, imagegpt
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor  # at the top from 5.18 on
imagegpt.register()
imagegpt.register()  # twice does no harm
folder = sys.argv[1]
names = [type(AutoConfig.from_pretrained(folder)), type(AutoModel.from_pretrained(folder))]
names.append(type(AutoModelForImageClassification.from_pretrained(folder)))
names.append(type(AutoImageProcessor.from_pretrained(folder)))
from PIL import Image
picture = Image.new("RGB", (9, 7), (255, 0, 0))
answers = pipeline("image-classification", model=folder)(picture)
processor = AutoImageProcessor.from_pretrained(folder)
model = AutoModelForImageClassification.from_pretrained(folder)
scores = model(processor(picture, return_tensors="pt").input_ids).logits.softmax(-1)[0].tolist()
print(json.dumps({"modules": [n.__module__.split(".")[0] for n in names], "answers": answers, "scores": scores}))
"""


def test_auto_classes_and_pipeline_after_register(tmp_path, forkserver):
    pytest.importorskip("imagegpt.checkpoints.registry", reason="being written")
    from imagegpt import ImageGPTImageProcessor

    model = tiny_model(ImageGPTForImageClassification, num_labels=3)
    model.save_pretrained(tmp_path)
    levels = torch.linspace(-1, 1, 16)[:, None].expand(16, 3).numpy()
    ImageGPTImageProcessor(clusters=levels, size={"height": 4, "width": 4}).save_pretrained(tmp_path)
    result = forkserver.run(["-c", REGISTERED, tmp_path])
    assert result.returncode == 0, result.stderr[-2000:]
    answer = json.loads(result.stdout.splitlines()[-1])
    assert answer["modules"] == ["imagegpt"] * 4
    best = max(answer["answers"], key=lambda a: a["score"])
    assert best["score"] == pytest.approx(max(answer["scores"]), abs=1e-5)
    assert sum(a["score"] for a in answer["answers"]) == pytest.approx(1, abs=1e-4)
