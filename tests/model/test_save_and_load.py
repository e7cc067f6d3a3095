"""Saving and loading: complete directories, Auto classes with and without the package, the Hub, other image sizes."""

import filecmp
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, hf_hub_download
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    ViTImageProcessor,
)

import configuration_mae
import dense_mae
import layers_mae
import modeling_mae
from attention_mae import DEFAULT_ATTENTION
from configuration_mae import MAEConfig
from modeling_mae import (
    MAEBackbone,
    MAEForImageClassification,
    MAEForPreTraining,
    MAEForSemanticSegmentation,
    MAEModel,
)
from tests.support.models import ALL_KINDS, KINDS, assert_close, model_of_kind, tiny_config


FIXTURES = Path(__file__).parent.parent / "fixtures"
AUTO_MAP = {
    "AutoConfig": "configuration_mae.MAEConfig",
    "AutoModel": "modeling_mae.MAEModel",
    "AutoModelForPreTraining": "modeling_mae.MAEForPreTraining",
    "AutoModelForImageClassification": "modeling_mae.MAEForImageClassification",
    "AutoBackbone": "modeling_mae.MAEBackbone",
    "AutoModelForSemanticSegmentation": "modeling_mae.MAEForSemanticSegmentation",
}
FILES = [
    "attention_mae.py",
    "checks_mae.py",
    "config.json",
    "configuration_mae.py",
    "cross_decoder_mae.py",
    "dense_mae.py",
    "layers_mae.py",
    "model.safetensors",
    "modeling_mae.py",
    "outputs_mae.py",
    "patches_mae.py",
    "preprocessor_config.json",
]
AUTO = {
    MAEModel: AutoModel,
    MAEForPreTraining: AutoModelForPreTraining,
    MAEForImageClassification: AutoModelForImageClassification,
    MAEForSemanticSegmentation: AutoModelForSemanticSegmentation,
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """One saved directory of each kind."""
    root = tmp_path_factory.mktemp("saved")
    for kind in ALL_KINDS:
        model_of_kind(kind).save_pretrained(root / kind)
    return root


def make_inputs():
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randn(2, 3, 32, 32, generator=generator),
        "larger": torch.randn(2, 3, 48, 32, generator=generator),
        "noise": torch.rand(2, 16, generator=generator),
    }


def run(model, images):
    """The main output of any of the models."""
    with torch.no_grad():
        if isinstance(model, MAEForPreTraining):
            return model(images, noise=make_inputs()["noise"]).logits
        return model(images)[0]


def frozen(model):
    return sorted(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


FROZEN = {
    "MAEModel": ["pos_embed"],
    "MAEForPreTraining": ["decoder.pos_embed", "mae.pos_embed"],
    "MAEForImageClassification": [],
    "MAEForSemanticSegmentation": [],
}


# Directories


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_saved_directory_is_complete(kind, saved):
    directory = saved / kind
    assert sorted(path.name for path in directory.iterdir()) == FILES
    config = json.loads((directory / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert config["model_type"] == "mae" and config["architectures"] == [ALL_KINDS[kind][0].__name__]
    for module in (modeling_mae, configuration_mae, dense_mae, layers_mae):
        assert filecmp.cmp(module.__file__, directory / Path(module.__file__).name, shallow=False)
    weights = load_file(directory / "model.safetensors")
    model = model_of_kind(kind)
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in weights.items())


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("cls", AUTO)
def test_any_class_loads_from_any_checkpoint(cls, kind, saved, capfd):
    """Without trust_remote_code, because modeling_mae is imported."""
    model, info = AUTO[cls].from_pretrained(saved / kind, output_loading_info=True)
    assert type(model) is cls
    assert not info["unexpected_keys"] and not info["mismatched_keys"] and "UNEXPECTED" not in capfd.readouterr().err
    assert frozen(model) == FROZEN[cls.__name__]
    direct = cls.from_pretrained(saved / kind)
    assert frozen(direct) == FROZEN[cls.__name__]
    source = model_of_kind(kind)
    weights = {key.removeprefix("mae."): value for key, value in source.state_dict().items()}
    for key, value in model.state_dict().items():
        key = key.removeprefix("mae.")
        if key in weights and key not in info["missing_keys"]:
            assert torch.equal(value, weights[key]), key
    if type(source) is cls:
        assert not info["missing_keys"]
        assert_close(run(model, make_inputs()["images"]), run(source, make_inputs()["images"]))
    else:
        # Only tensors that this kind of checkpoint does not have are missing, and none of the blocks.
        assert not [key for key in info["missing_keys"] if "mae.blocks" in key or key.startswith("blocks")]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_backbone_opens_every_checkpoint(kind, saved, capfd):
    backbone, info = MAEBackbone.from_pretrained(saved / kind, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert "UNEXPECTED" not in capfd.readouterr().err
    source = model_of_kind(kind)
    encoder = getattr(source, "mae", source)
    for name, value in backbone.mae.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[name]), name


def test_auto_backbone_takes_a_configuration_and_a_name_on_the_hub(saved, hub):
    """transformers asks the Hub even for a directory, and then refuses its name."""
    config = AutoConfig.from_pretrained(saved / "backbone")
    assert type(AutoBackbone.from_config(config)) is MAEBackbone
    model_of_kind("backbone").push_to_hub("me/backbone")
    images = make_inputs()["images"]
    backbone = AutoBackbone.from_pretrained("me/backbone", out_features=["stem", "stage1", "stage3", "stage4"]).eval()
    assert backbone.out_indices == [0, 1, 3, 4]
    expected = MAEBackbone.from_pretrained(saved / "backbone", out_indices=[0, 1, 3, 4]).eval()
    assert_close(backbone(images).feature_maps[0], expected(images).feature_maps[0])


def test_auto_config_and_processor_load(saved):
    assert type(AutoConfig.from_pretrained(saved / "encoder")) is MAEConfig
    assert isinstance(AutoImageProcessor.from_pretrained(saved / "encoder"), ViTImageProcessor)


def test_surplus_blocks_are_reported(saved):
    for cls, field, prefix in [
        (MAEModel, "num_hidden_layers", "blocks.1."),
        (MAEForPreTraining, "num_hidden_layers", "mae.blocks.1."),
        (MAEForPreTraining, "decoder_num_hidden_layers", "decoder.blocks.1."),
    ]:
        _, info = cls.from_pretrained(saved / "pretraining", output_loading_info=True, **{field: 1})
        assert info["unexpected_keys"] and all(prefix in key for key in info["unexpected_keys"])


def test_mean_pooling_classifier_loads_from_an_encoder(saved):
    for kind in ("encoder", "pretraining"):
        model, info = MAEForImageClassification.from_pretrained(
            saved / kind, pooling="mean", num_labels=3, output_loading_info=True
        )
        assert not info["unexpected_keys"]
        assert set(info["missing_keys"]) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
        assert not hasattr(model.mae.norm, "weight") and model.fc_norm.weight.shape == (32,)


def test_mean_pooling_classifier_opens_as_encoder(saved):
    model, info = AutoModel.from_pretrained(saved / "classification_mean", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    outputs = model(make_inputs()["images"], output_hidden_states=True)
    assert_close(outputs.pooler_output, outputs.hidden_states[-1][:, 1:].mean(1))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_explicit_attention_wins(attention, saved):
    for load in (AutoModel.from_pretrained, MAEModel.from_pretrained):
        model = load(saved / "pretraining", attn_implementation=attention)
        assert model.config._attn_implementation == attention
    assert MAEModel(tiny_config(attn_implementation=attention)).config._attn_implementation == attention


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_of_earlier_versions_give_the_same_outputs(kind):
    """Every later version must load these to the same outputs."""
    directory = FIXTURES / f"checkpoint_{kind}"
    model, info = AUTO[KINDS[kind][0]].from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = load_file(directory / "expected.safetensors")
    pixel_values, noise = expected["pixel_values"], expected["noise"]
    with torch.no_grad():
        outputs = model(pixel_values) if kind.startswith("classification") else model(pixel_values, noise=noise)
        if kind == "encoder":
            assert_close(model(pixel_values).last_hidden_state, expected["unmasked"])
    keys = [key.removeprefix("output.") for key in expected if key.startswith("output.")]
    assert keys
    for key in keys:
        assert_close(outputs[key], expected[f"output.{key}"])


def test_other_processes_write_nothing(tmp_path):
    model_of_kind("encoder").save_pretrained(tmp_path / "model", is_main_process=False)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.safetensors"))


def test_save_pretrained_takes_is_main_process_and_state_dict_by_position(tmp_path):
    model = model_of_kind("encoder")
    model.save_pretrained(tmp_path / "other", False)
    assert not list(tmp_path.rglob("*.json"))
    state_dict = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    names = set(state_dict)
    model.save_pretrained(tmp_path / "model", True, state_dict)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    assert state_dict.keys() == names  # transformers alone would empty it
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert saved.keys() == names and all(torch.equal(saved[name], state_dict[name]) for name in names)


def test_arguments_of_saving_have_the_order_of_transformers():
    names = list(inspect.signature(MAEModel.save_pretrained).parameters)[:-1]
    assert names == list(inspect.signature(PreTrainedModel.save_pretrained).parameters)[: len(names)]


# To the Hub


def test_save_pretrained_with_push_uploads_what_it_saves(tmp_path, hub):
    model = model_of_kind("encoder")
    state_dict = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(
        tmp_path, push_to_hub=True, repo_id="me/variant", variant="fp16", state_dict=state_dict, private=True
    )
    files = ["model.fp16.safetensors" if name == "model.safetensors" else name for name in FILES]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert sorted(HfApi().list_repo_files("me/variant")) == sorted(["README.md", *files])
    assert HfApi().model_info("me/variant").private
    pushed = load_file(hf_hub_download("me/variant", "model.fp16.safetensors"))
    assert all(torch.equal(pushed[name], tensor) for name, tensor in state_dict.items())


def test_save_pretrained_with_push_forwards_the_arguments_of_push_to_hub(tmp_path, hub):
    model = model_of_kind("encoder")
    model.push_to_hub("me/forwarded")
    model.cls_token.data += 1
    model.save_pretrained(
        tmp_path, push_to_hub=True, repo_id="me/forwarded", revision="dev", tags=["leaves"], commit_message="Better"
    )
    repository = hub.repositories["models", "me/forwarded"]
    assert repository.commits[repository.branches["dev"]].title == "Better"
    for revision, offset in (("main", 1), ("dev", 0)):
        pushed = AutoModel.from_pretrained("me/forwarded", revision=revision)
        assert_close(pushed.cls_token + offset, model.cls_token)
    card = ModelCard.load(hf_hub_download("me/forwarded", "README.md", revision="dev"))
    assert sorted(card.data.tags) == ["leaves", "mae", "masked-autoencoder"]


def test_distributed_checkpoint_with_push_is_refused_before_anything_is_written(tmp_path, hub):
    hub.requests.clear()
    with pytest.raises(ValueError, match="distributed checkpoint cannot be pushed.*push_to_hub"):
        model_of_kind("encoder").save_pretrained(
            tmp_path / "model", push_to_hub=True, repo_id="me/distributed", distributed_checkpoint=True
        )
    assert not (tmp_path / "model").exists() and not hub.requests


def test_push_to_hub_keeps_a_processor_and_tags_a_new_card(hub):
    classifier = model_of_kind("classification_cls")
    HfApi().create_repo("me/processor")
    HfApi().upload_file(
        path_or_fileobj=b'{"size": 5}', path_in_repo="preprocessor_config.json", repo_id="me/processor"
    )
    commit = classifier.push_to_hub("me/processor")
    assert HfApi().model_info("me/processor").sha == commit.oid and commit.commit_message.startswith("Upload ")
    assert json.loads(Path(hf_hub_download("me/processor", "preprocessor_config.json")).read_text()) == {"size": 5}
    card = ModelCard.load("me/processor")
    assert card.data.pipeline_tag == "image-classification" and card.data.tags == ["mae", "masked-autoencoder"]


def test_push_to_hub_with_an_unknown_argument_creates_no_repository(hub):
    with pytest.raises(TypeError, match="privat"):
        model_of_kind("encoder").push_to_hub("me/unknown", privat=True)
    assert ("models", "me/unknown") not in hub.repositories


# Without the package


REMOTE_KINDS = [*KINDS, "segmentation_linear", "pretraining_cross"]


@pytest.fixture(scope="session")
def reports(saved, tmp_path_factory):
    """The report and working directory of each kind, and stderr, of a process that cannot import the package."""
    work = tmp_path_factory.mktemp("remote")
    folders = [work / kind for kind in REMOTE_KINDS]
    for folder in folders:
        folder.mkdir()
        save_file(make_inputs(), folder / "inputs.safetensors")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(work / "home"), "HF_MODULES_CACHE": str(work / "modules"), "HF_HUB_OFFLINE": "1"}
    pairs = [path for kind, folder in zip(REMOTE_KINDS, folders) for path in (saved / kind, folder)]
    command = [sys.executable, FIXTURES / "load_without_package.py", *pairs]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work, timeout=300)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return dict(zip(REMOTE_KINDS, zip(map(json.loads, lines), folders, strict=True), strict=True)), result.stderr


@pytest.fixture(params=REMOTE_KINDS)
def remote(request, reports):
    """Kind, report, outputs and stderr of what a process without the package loaded."""
    report, folder = reports[0][request.param]
    return request.param, report, load_file(folder / "outputs.safetensors"), reports[1]


def test_code_of_a_checkpoint_works_without_the_package(remote, saved):
    kind, report, outputs, stderr = remote
    assert report["importable"] == []
    assert report["AutoConfig"].startswith("transformers_modules.")
    processor = "BeitImageProcessor" if kind.startswith("segmentation") else "ViTImageProcessor"
    assert report["AutoImageProcessor"].startswith(processor)
    assert_close(
        outputs["backbone"], MAEBackbone.from_pretrained(saved / kind)(make_inputs()["larger"]).feature_maps[0]
    )
    assert "UNEXPECTED" not in stderr and "trust_remote_code" not in stderr
    for cls, auto in AUTO.items():
        name = auto.__name__
        loaded, again, resized = (report[name + suffix] for suffix in ("", " again", " resized"))
        for description in (loaded, again, resized):
            assert description["class"] == cls.__name__
            assert description["module"].startswith("transformers_modules.")
            assert description["frozen"] == FROZEN[cls.__name__]
        assert loaded["unexpected"] == []
        assert again["attention"] == "eager" and loaded["attention"] == DEFAULT_ATTENTION
        assert loaded["image_size"] == 32 and resized["image_size"] == [48, 32]
        assert report[f"{name} saved"] == FILES and report[f"{name} auto_map"] == AUTO_MAP
        assert_close(outputs[f"{name} again"], outputs[name], 1e-5)  # eager against sdpa
        _, info = cls.from_pretrained(saved / kind, output_loading_info=True)
        assert loaded["missing"] == sorted(info["missing_keys"])
        if loaded["missing"] == []:
            assert_close(outputs[name], run(cls.from_pretrained(saved / kind), make_inputs()["images"]))


def test_code_of_a_checkpoint_resizes_positions(remote, saved):
    kind, _, outputs, _ = remote
    encoder = resized_by_hand(MAEModel, saved / kind, (48, 32))
    assert_close(outputs["resized"], encoder(make_inputs()["larger"]).last_hidden_state)


def test_code_of_a_checkpoint_works_in_pipelines(remote, saved):
    kind, report, outputs, _ = remote
    picture = Image.new("RGB", (40, 50), (200, 30, 90))
    processor = AutoImageProcessor.from_pretrained(saved / kind)
    pixel_values = processor(picture, return_tensors="pt")["pixel_values"]
    encoded = MAEModel.from_pretrained(saved / kind)(pixel_values)
    assert_close(outputs["pipeline pool=False"], encoded.last_hidden_state, 1e-5)
    assert_close(outputs["pipeline pool=True"], encoded.pooler_output, 1e-5)
    if kind.startswith("segmentation"):
        logits = MAEForSemanticSegmentation.from_pretrained(saved / kind)(pixel_values).logits
        classes = F.interpolate(logits, (50, 40), mode="bilinear", align_corners=False)[0].argmax(0)
        assert report["segments"] == {f"LABEL_{i}": (classes == i).sum().item() for i in classes.unique().tolist()}
    if kind.startswith("classification"):
        scores = MAEForImageClassification.from_pretrained(saved / kind)(pixel_values).logits.softmax(-1)[0]
        reported = {entry["label"]: entry["score"] for entry in report["pipeline"]}
        assert reported == {f"LABEL_{i}": pytest.approx(score.item(), abs=1e-5) for i, score in enumerate(scores)}


def test_code_versions_do_not_shadow_each_other(remote):
    assert remote[1]["versions"] == ["this", "newer", "this"]


# Other image sizes


def resized_by_hand(cls, directory, size):
    """Loads a checkpoint of 4 x 4 patches of 8 into a model for `size`, resampling the tables by hand."""
    weights = cls.from_pretrained(directory).state_dict()
    for key, table in weights.items():
        if key.endswith("pos_embed"):
            image = table[0, 1:].T.reshape(1, -1, 4, 4)
            image = F.interpolate(image, (size[0] // 8, size[1] // 8), mode="bicubic", align_corners=False)
            weights[key] = torch.cat([table[0, :1], image[0].flatten(1).T])[None]
    config = MAEConfig.from_pretrained(directory)
    config.image_size = size
    model = cls(config).eval()
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("kind", ["encoder", "pretraining", "classification_mean"])
@pytest.mark.parametrize("size", [48, (16, 40), [16, 40]])
@pytest.mark.parametrize("auto", [False, True])
def test_image_size_argument_resamples_positions(kind, size, auto, saved):
    cls = KINDS[kind][0]
    model, info = (AUTO[cls] if auto else cls).from_pretrained(saved / kind, image_size=size, output_loading_info=True)
    pair = (size, size) if isinstance(size, int) else tuple(size)
    assert not info["missing_keys"] and not info["mismatched_keys"] and not info["unexpected_keys"]
    assert model.config.image_size == (size if isinstance(size, int) else pair)
    assert frozen(model) == FROZEN[cls.__name__]
    by_hand = resized_by_hand(cls, saved / kind, pair)
    for key, value in model.state_dict().items():
        assert_close(value, by_hand.state_dict()[key])
    images = torch.randn(2, 3, *pair)
    arguments = {"noise": torch.rand(2, pair[0] * pair[1] // 64)} if cls is MAEForPreTraining else {}
    assert_close(model(images, **arguments)[0], by_hand(images, **arguments)[0])


def test_resized_model_saves_its_size(saved, tmp_path):
    model = MAEForPreTraining.from_pretrained(saved / "pretraining", image_size=(16, 40))
    model.save_pretrained(tmp_path)
    again, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and again.config.image_size == (16, 40)
    assert torch.equal(again.decoder.pos_embed, model.decoder.pos_embed)
    assert AutoImageProcessor.from_pretrained(tmp_path).size == {"height": 16, "width": 40}


def test_config_with_another_image_size(saved):
    config = MAEConfig.from_pretrained(saved / "encoder")
    config.image_size = 48
    model = MAEModel.from_pretrained(saved / "encoder", config=config)
    assert model.config.image_size == config.image_size == 48
    assert_close(model.pos_embed, resized_by_hand(MAEModel, saved / "encoder", (48, 48)).pos_embed)
    same = MAEModel.from_pretrained(saved / "encoder", image_size=(32, 32))
    assert_close(same.pos_embed, MAEModel.from_pretrained(saved / "encoder").pos_embed, 0)


def test_image_size_argument_that_patches_do_not_divide_is_refused(saved):
    for load in (AutoModel.from_pretrained, MAEModel.from_pretrained):
        with pytest.raises(Exception, match="image_size=33.*patch_size=8"):
            load(saved / "encoder", image_size=33)


def test_weights_without_configuration_load_with_a_given_one(saved, tmp_path):
    """A bare model.safetensors, with the configuration given."""
    (tmp_path / "model.safetensors").write_bytes((saved / "encoder" / "model.safetensors").read_bytes())
    model = MAEModel.from_pretrained(tmp_path, config=tiny_config())
    assert_close(run(model, make_inputs()["images"]), run(model_of_kind("encoder"), make_inputs()["images"]))


def test_configuration_without_image_size_means_the_default(tmp_path):
    """A hand-written config.json may leave out what is the default."""
    MAEModel(tiny_config(image_size=224, patch_size=56)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("image_size") == 224
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert MAEModel.from_pretrained(tmp_path).pos_embed.shape[1] == 17
    for load in (MAEModel.from_pretrained, AutoModel.from_pretrained):
        assert load(tmp_path, image_size=112).pos_embed.shape[1] == 5


# Processor


@pytest.mark.parametrize(
    "fields, expected",
    [
        (
            {"image_size": 224, "patch_size": 16},
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
        ),
        (
            {"image_size": (96, 96), "patch_size": 16},
            {"size": {"shortest_edge": 109}, "crop_size": {"height": 96, "width": 96}, "do_center_crop": True},
        ),
        (
            {"image_size": 448, "patch_size": 16},
            {"size": {"shortest_edge": 448}, "crop_size": {"height": 448, "width": 448}, "do_center_crop": True},
        ),
        ({"image_size": (64, 128)}, {"size": {"height": 64, "width": 128}, "do_center_crop": None}),
        (
            {},
            {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "do_normalize": True},
        ),
        ({"image_mean": 0.4, "image_std": [0.1, 0.2, 0.3]}, {"image_mean": [0.4] * 3, "image_std": [0.1, 0.2, 0.3]}),
        ({"num_channels": 1}, {"do_normalize": False, "do_rescale": True, "do_convert_rgb": False}),
        (
            {"num_channels": 1, "image_mean": 0.5, "image_std": 0.25},
            {"do_normalize": True, "image_mean": [0.5], "image_std": [0.25], "do_convert_rgb": False},
        ),
    ],
)
def test_image_processor_follows_from_the_configuration(fields, expected, tmp_path):
    config = tiny_config(**fields)
    MAEModel(config).save_pretrained(tmp_path)
    processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert isinstance(processor, ViTImageProcessor)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written["resample"] == 3 and "auto_map" not in written  # bicubic, and no code to trust
    for key, value in expected.items():
        actual = getattr(processor, key)
        assert (list(actual) if isinstance(actual, tuple) else actual) == value, key
    mode, colour = ("L", 128) if config.num_channels == 1 else ("RGB", (10, 128, 250))
    pixel_values = processor(Image.new(mode, (150, 90), colour), return_tensors="pt")["pixel_values"]
    size = config.image_size
    assert pixel_values.shape == (1, config.num_channels, *((size, size) if isinstance(size, int) else size))
    values = torch.tensor([128 / 255] if config.num_channels == 1 else [10 / 255, 128 / 255, 250 / 255])
    if config.image_mean is not None:
        values = (values - torch.tensor(config.image_mean)) / torch.tensor(config.image_std)
    assert_close(pixel_values.mean((0, 2, 3)), values, 1e-3)


def test_processor_in_the_directory_is_kept(tmp_path):
    model = model_of_kind("encoder")
    ViTImageProcessor(size={"height": 5, "width": 7}).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).size == {"height": 5, "width": 7}


def test_saving_again_keeps_mean_and_std(tmp_path):
    MAEModel(tiny_config(image_mean=[0.1, 0.2, 0.3], image_std=0.5)).save_pretrained(tmp_path / "a")
    MAEModel.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "b")
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and list(processor.image_std) == [0.5] * 3
