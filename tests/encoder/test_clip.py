import argparse
import json
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fastltssl.encoder import towers
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.weights import RANDOM_SEED, TINY, file_settings, torchscript_state
from fastltssl.errors import EncoderError, SourceError
from fastltssl.images import statistics

PROMPTS = [["a photo of a cat", "a cat", "a red cat"], ["a photo of a tree", "a tree", "a red tree"]]
SMALL = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The name of a two-block ViT that open_clip can build."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "Small-ViT.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)
    yield "Small-ViT"
    open_clip.factory._MODEL_CONFIG_PATHS.remove(folder)
    open_clip.factory._MODEL_CONFIGS.pop("Small-ViT")


@pytest.fixture(scope="module")
def tiny():
    return load_encoder("tiny", None)


@pytest.fixture(scope="module")
def plain_tiny():
    """The same weights as open_clip gives them, with its preprocessing."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{TINY}")
    return model.eval(), transform


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def pixels(n, side, seed=0):
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def normalised(x, encoder):
    mean, std = (torch.tensor(channels)[:, None, None] for channels in (encoder.mean, encoder.std))
    return (x.float() / 255 - mean) / std


def test_the_features_of_the_tiny_model_are_open_clips_embeddings(tiny, plain_tiny):
    x = pixels(5, 48)
    with torch.inference_mode():
        wanted = plain_tiny[0].encode_image(normalised(x, tiny), normalize=True)
    assert (tiny.size, tiny.width, tiny.embed_width) == (48, 128, 128)
    assert tiny.projection.shape == (128, 128)
    features = tiny.encode(x)
    assert features.shape == (5, 128)
    assert features.dtype == torch.float32
    embedded = F.normalize(features @ torch.from_numpy(tiny.projection), dim=-1)
    torch.testing.assert_close(embedded, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(tiny.encode(x.float() / 255), features, atol=1e-4, rtol=1e-5)


def test_the_features_of_a_vit_times_its_projection_are_open_clips_embeddings(small, tmp_path):
    encoder = load_encoder(small, "none")
    with torch.random.fork_rng():
        torch.manual_seed(RANDOM_SEED)
        plain = open_clip.create_model(small).eval()
    x = pixels(5, 32)
    with torch.inference_mode():
        wanted = plain.encode_image(normalised(x, encoder), normalize=True)
    features = encoder.encode(x)
    assert (encoder.width, encoder.embed_width) == (48, 24) == encoder.projection.shape
    torch.testing.assert_close(
        F.normalize(features @ torch.from_numpy(encoder.projection), dim=-1), wanted, atol=1e-5, rtol=0
    )
    np.testing.assert_array_equal(encoder.ln_post[0], plain.visual.ln_post.weight.detach())
    np.testing.assert_array_equal(encoder.ln_post[1], plain.visual.ln_post.bias.detach())
    assert encoder.logit_scale == pytest.approx(plain.logit_scale.exp().item())
    assert encoder.logit_bias == 0


def test_a_resnet_gives_the_same_features_with_its_batch_norms_folded():
    vision = {"image_size": 64, "layers": [1, 2, 1, 1], "width": 16, "head_width": 32}
    tower = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=SMALL["text_cfg"]).visual.eval()
    generator = torch.Generator().manual_seed(0)
    norms = [part for part in tower.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        x = torch.randn(3, 3, 64, 64, generator=generator)
        wanted = tower(x)
        towers.fold_batch_norms(tower)
        assert len(norms) == 22
        assert not [part for part in tower.modules() if isinstance(part, torch.nn.BatchNorm2d)]
        torch.testing.assert_close(tower(x), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", [{}, {"layers": 1}, {"ls_init_value": 0.3}, {"final_ln_after_pool": True}])
def test_a_trimmed_last_block_changes_no_feature(change):
    tower = open_clip.CLIP(
        embed_dim=24, vision_cfg=SMALL["vision_cfg"] | change, text_cfg=SMALL["text_cfg"]
    ).visual.eval()
    x = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = tower(x)
        assert towers.trim_last_block(tower, 32)
        torch.testing.assert_close(tower(x), wanted, atol=1e-5, rtol=1e-5)
    assert isinstance(tower.transformer.resblocks[-1], towers.ClassTokenBlock)


def test_a_tower_that_pools_its_patches_or_would_change_is_left_as_it_is(monkeypatch):
    for change in ({"pool_type": "avg"}, {"attentional_pool": True}):
        vision = SMALL["vision_cfg"] | change
        tower = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=SMALL["text_cfg"]).visual.eval()
        assert not towers.trim_last_block(tower, 32)
    tower = open_clip.CLIP(embed_dim=24, vision_cfg=SMALL["vision_cfg"], text_cfg=SMALL["text_cfg"]).visual.eval()
    last = tower.transformer.resblocks[-1]
    whole = towers.ClassTokenBlock.forward
    monkeypatch.setattr(towers.ClassTokenBlock, "forward", lambda *given, **named: whole(*given).flip(-1))
    assert not towers.trim_last_block(tower, 32)
    assert tower.transformer.resblocks[-1] is last


def test_trimming_can_be_turned_off_and_is_part_of_what_features_depend_on(tiny):
    whole = load_encoder("tiny", None, trim=False)
    x = pixels(5, 48)
    torch.testing.assert_close(tiny.encode(x), whole.encode(x), atol=1e-4, rtol=1e-4)
    assert (tiny.provenance["is_trimmed"], whole.provenance["is_trimmed"]) == (True, False)


def test_pixels_may_be_normalised_by_the_statistics_of_the_data_set(tiny):
    mean, std = statistics("cifar10")
    other = load_encoder("tiny", None, statistics=(mean, std))
    x = pixels(4, 48)
    shift = (torch.tensor(m)[:, None, None] for m in (tiny.mean, tiny.std, mean, std))
    own_mean, own_std, set_mean, set_std = shift
    same = ((x / 255 - set_mean) / set_std) * own_std + own_mean  # what tiny has to see to compute the same
    torch.testing.assert_close(other.encode(x), tiny.encode(same), atol=1e-4, rtol=1e-4)
    assert other.provenance["preprocessing"]["mean"] == list(mean)
    with pytest.raises(SourceError, match="no statistics of 'food101' are known, only of cifar10"):
        statistics("food101")


def test_text_features_are_open_clips_and_have_unit_norm(tiny, plain_tiny):
    text = tiny.encode_text(PROMPTS)
    tokenize = open_clip.get_tokenizer(f"local-dir:{TINY}", bpe_path=str(TINY / "bpe_tiny.txt.gz"))
    tokens = tokenize(PROMPTS[0] + PROMPTS[1])
    with torch.inference_mode():
        wanted = plain_tiny[0].encode_text(tokens, normalize=True).view(2, 3, 128)
    assert text.dtype == np.float32
    np.testing.assert_allclose(text, wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, atol=1e-6)


def test_text_features_do_not_depend_on_the_other_prompts(tiny):
    many = PROMPTS + [[f"a photo of {row}", f"{row} cats", "a tree"] for row in range(40)]
    np.testing.assert_array_equal(tiny.encode_text(many)[:2], tiny.encode_text(PROMPTS))


@pytest.mark.parametrize("shape", [(48, 48), (48, 70), (31, 20)])
@pytest.mark.parametrize("model", ["tiny", "small"])
def test_a_canvas_normalised_is_open_clips_own_preprocessing(model, shape, tiny, plain_tiny, small):
    if model == "tiny":  # squashed, bilinear
        encoder, transform = tiny, plain_tiny[1]
    else:  # shortest side and center crop, bicubic
        encoder, transform = load_encoder(small, "none"), open_clip.create_model_and_transforms(small)[2]
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    canvas = encoder.canvas(image)
    assert canvas.dtype == np.uint8
    assert canvas.shape == (3, encoder.size, encoder.size)
    assert torch.equal(normalised(torch.from_numpy(canvas.copy()), encoder), transform(Image.fromarray(image)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_gives_nearly_the_same_features(tiny, precision):
    x = pixels(5, 48)
    lower = load_encoder("tiny", None, precision=precision)
    assert lower.provenance["precision"] == precision
    assert F.cosine_similarity(lower.encode(x), tiny.encode(x), dim=-1).min() > 0.999
    assert lower.provenance["weights_sha256"] == tiny.provenance["weights_sha256"]


def test_the_provenance_of_the_tiny_model_says_what_its_features_depend_on(tiny):
    given = dict(tiny.provenance)
    assert len(given.pop("weights_sha256")) == 64
    assert given == {
        "model": "tiny",
        "pretrained": None,
        "preprocessing": {
            "size": 48, "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28],
            "resize": "squash", "interpolation": "bilinear",
        },
        "quick_gelu": False,
        "precision": "fp32",
        "is_trimmed": True,
    }  # fmt: skip
    assert tiny.notes == ()


def test_random_weights_are_the_same_each_time_and_announced_loudly(small):
    torch.manual_seed(11)
    before = torch.random.get_rng_state()
    first = load_encoder(small, "none")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(12)
    second = load_encoder(small, "none")
    assert torch.equal(first.encode(pixels(3, 32)), second.encode(pixels(3, 32)))
    assert first.provenance == second.provenance
    assert first.notes[0].startswith("RANDOM WEIGHTS: Small-ViT was not trained")


def test_a_checkpoint_file_is_loaded_and_its_place_is_not_remembered(small, tmp_path):
    torch.manual_seed(13)
    model = open_clip.create_model(small).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    encoder = load_encoder(small, str(tmp_path / "weights.pt"))
    assert encoder.provenance["pretrained"] == "file"
    assert encoder.provenance["weights_sha256"] == towers.weights_sha256(model)
    assert encoder.provenance["weights_sha256"] != load_encoder(small, "none").provenance["weights_sha256"]
    assert str(tmp_path) not in json.dumps(encoder.provenance)
    np.testing.assert_array_equal(encoder.projection, model.visual.proj.detach())


def test_the_hash_of_weights_sees_a_name_a_shape_and_a_value():
    with torch.random.fork_rng():
        plain = torch.nn.Linear(3, 2)
    known = towers.weights_sha256(plain)
    wrapped = torch.nn.Sequential(plain)
    assert towers.weights_sha256(wrapped) != known
    plain.weight.data = plain.weight.data.view(3, 2)
    assert towers.weights_sha256(plain) != known
    plain.weight.data = plain.weight.data.view(2, 3)
    assert towers.weights_sha256(plain) == known
    plain.bias.data[0] += 1
    assert towers.weights_sha256(plain) != known


def _tensors(small):
    torch.manual_seed(13)
    model = open_clip.create_model(small).eval()
    return model.state_dict(), towers.weights_sha256(model)


def _prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


WRAPPED = {
    "model": lambda s: {"model": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": _prefixed(s, "module."), "optimizer_state_dict": {"state": {}}},
    "state_dict": lambda s: {"state_dict": _prefixed(s, "module."), "epoch": 3},
    "compiled": lambda s: _prefixed(s, "_orig_mod."),
    "stacked": lambda s: {"state_dict": _prefixed(s, "module._orig_mod.model.clip.")},
    "compiled tower": lambda s: {name.replace("visual.", "visual._orig_mod."): value for name, value in s.items()},
    "averaged": lambda s: _prefixed(s, "module.") | {"n_averaged": torch.tensor(5)},
    "with a head": lambda s: {"state_dict": _prefixed(s, "model.") | {"head.weight": torch.zeros(2)}},
    "beside its mean": lambda s: {"state_dict": s, "state_dict_ema": {name: 0 * value for name, value in s.items()}},
    "nested": lambda s: {"model": {"state_dict": _prefixed(s, "clip_model.")}},
}


@pytest.mark.parametrize("form", WRAPPED)
def test_what_training_code_wraps_around_weights_is_taken_off(small, tmp_path, form):
    state, digest = _tensors(small)
    torch.save(WRAPPED[form](state), tmp_path / "w.pt")
    encoder = load_encoder(small, str(tmp_path / "w.pt"))
    assert encoder.provenance["weights_sha256"] == digest
    told = {
        "averaged": "w.pt: names outside of module. are left out: 'n_averaged'",
        "with a head": "w.pt: names outside of model. are left out: 'head.weight'",
        "beside its mean": "w.pt: weights are taken from its entry state_dict, not from state_dict_ema",
    }
    assert encoder.notes == ((told[form],) if form in told else ())


def test_prefixes_in_safetensors_are_taken_off_too(small, tmp_path):
    from safetensors.torch import save_file

    state, digest = _tensors(small)
    save_file(
        _prefixed({name: value.contiguous() for name, value in state.items()}, "clip."), tmp_path / "w.safetensors"
    )
    assert load_encoder(small, str(tmp_path / "w.safetensors")).provenance["weights_sha256"] == digest


NO_WEIGHTS = {
    "is a git-lfs pointer, not the weights: fetch them with git lfs pull":
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "is empty": b"",
    "is a web page, not weights: download the file itself": b"<!DOCTYPE html><html>404</html>",
    "is a text file that begins 'not weights', and holds no weights": b"not weights",
    "is damaged, or no checkpoint": b"\x80\x02nothing",
    "could not be loaded": b"PK\x03\x04" + bytes(300),
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(("message", "raw"), NO_WEIGHTS.items(), ids=[text[:20] for text in NO_WEIGHTS])
def test_files_in_the_place_of_weights_are_told_for_what_they_are(small, tmp_path, message, raw, suffix):
    (tmp_path / f"w.{suffix}").write_bytes(raw)
    if suffix == "safetensors" and raw[:1] in (b"\x80", b"P"):
        message = "is no whole safetensors file"
    with pytest.raises(EncoderError) as raised:
        load_encoder(small, str(tmp_path / f"w.{suffix}"))
    assert message in str(raised.value)


@pytest.mark.parametrize("is_legacy", [True, False])
def test_objects_beside_weights_are_named_and_nothing_of_them_is_loaded(small, tmp_path, is_legacy):
    state, _ = _tensors(small)
    held = {
        "an object of argparse.Namespace beside the weights": {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
        "an object of pathlib.PosixPath beside the weights": {"state_dict": state, "out": Path("x")},
        "a whole pickled module (torch.nn.modules.linear.Linear)": torch.nn.Linear(2, 2),
        "beside the weights, which is refused, as loading it could run code": {"state_dict": Evil()},
        "tensors by name, but 'lr'": {"lr": 0.1},
        "holds list, not tensors by name": [1, 2],
        "holds Tensor, not tensors by name": torch.ones(2),
    }
    for message, value in held.items():
        torch.save(value, tmp_path / "w.pt", _use_new_zipfile_serialization=not is_legacy)
        with pytest.raises(EncoderError) as raised:
            load_encoder(small, str(tmp_path / "w.pt"))
        assert message in str(raised.value).replace("pathlib._local", "pathlib")


def test_weights_of_another_model_are_told_by_the_names_they_have_and_should_have(small, tmp_path):
    state, _ = _tensors(small)
    torch.save({"vision_model.weight": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(
        EncoderError, match=r"has 1 tensors and .* expects .* are missing \('.*1 are unknown \('vision_mod"
    ):
        load_encoder(small, str(tmp_path / "w.pt"))
    torch.save(state | {"visual.ln_post.bias": torch.ones(7)}, tmp_path / "w.pt")
    with pytest.raises(EncoderError, match=r"1 have another shape \(visual.ln_post.bias is \[7\], not \["):
        load_encoder(small, str(tmp_path / "w.pt"))
    (tmp_path / "folder").mkdir()
    with pytest.raises(EncoderError, match=r"and the folder .*: name a checkpoint in it"):
        load_encoder(small, str(tmp_path / "folder"))


def test_a_folder_of_a_model_with_a_pointer_for_weights_is_told_as_such(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "m")
    (checkpoint,) = folder.glob("*.safetensors")
    checkpoint.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(EncoderError, match="is a git-lfs pointer, not the weights"):
        load_encoder(f"local-dir:{folder}", None)


class Program(torch.nn.Module):
    """A module that holds the tensors of another under their names, as the programs that OpenAI published do."""

    def __init__(self, tensors):
        super().__init__()
        for name, value in tensors.items():
            *folders, last = name.split(".")
            owner = self
            for folder in folders:
                if not hasattr(owner, folder):
                    owner.add_module(folder, torch.nn.Module())
                owner = getattr(owner, folder)
            owner.register_buffer(last, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_torchscript_archive_gives_its_tensors_and_is_taken_as_openais(small, tmp_path):
    torch.manual_seed(13)
    model = open_clip.create_model(small).eval()
    sizes = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    torch.jit.save(torch.jit.script(Program(model.state_dict() | sizes)), tmp_path / "program.pt")
    encoder = load_encoder(small, str(tmp_path / "program.pt"))
    assert encoder.provenance["quick_gelu"] is True
    assert encoder.provenance["weights_sha256"] == towers.weights_sha256(model)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("was-run"),))


@pytest.mark.parametrize("is_legacy", [True, False])
def test_a_checkpoint_never_runs_code_whatever_stands_behind_it(small, tmp_path, monkeypatch, is_legacy):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Evil()}, "evil.pt", _use_new_zipfile_serialization=not is_legacy)
    with zipfile.ZipFile("evil.pt", "a") as archive:  # what Python's zipfile takes for a TorchScript archive
        archive.writestr("evil/constants.pkl", b"")
    with pytest.raises(EncoderError, match="could not be loaded"):
        load_encoder(small, "evil.pt")
    assert not Path("was-run").exists()


def test_activation_follows_the_tags_of_a_model_and_openais_archives_take_quickgelu(tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(2)}, weights)
    tags = open_clip.list_pretrained_tags_by_model("ViT-B-16")
    notes = []
    assert torchscript_state(weights) is None
    assert file_settings("ViT-B-16", weights, tags, notes, is_openai=True)["force_quick_gelu"] is True
    assert notes == []
    assert file_settings("ViT-B-16", weights, tags, notes)["force_quick_gelu"] is False
    assert notes == [
        "weights.pt: taken as trained with GELU. For OpenAI weights use --model ViT-B-16-quickgelu"
    ]  # fmt: skip


def test_a_file_of_siglip_weights_gets_the_preprocessing_its_tags_agree_on(tmp_path):
    (tmp_path / "siglip.safetensors").write_bytes(b"")
    tags = open_clip.list_pretrained_tags_by_model("ViT-B-16-SigLIP")
    settings = file_settings("ViT-B-16-SigLIP", tmp_path / "siglip.safetensors", tags, [])
    assert tuple(settings["image_mean"]) == (0.5, 0.5, 0.5)
    assert settings["image_resize_mode"] == "squash"


def test_the_tiny_model_asks_nothing_of_the_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)
    assert load_encoder("tiny", None).width == 128


def test_a_model_out_of_reach_ends_in_seconds_with_what_to_do(offline, capfd):
    began = time.perf_counter()
    with pytest.raises(EncoderError) as error:
        load_encoder("ViT-B-16", "laion2b_s34b_b88k")
    assert time.perf_counter() - began < 5
    message = str(error.value)
    assert "--model ViT-B-16 --pretrained laion2b_s34b_b88k" in message
    assert "Tried: the tag laion2b_s34b_b88k in the local hub folder, then a download" in message
    assert "--pretrained PATH" in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("model", "pretrained", "parts"),
    [
        ("ViT-B-61", "openai", ["'ViT-B-61' is unknown", "Nearest: ViT-B-16", "tiny"]),
        ("tinny", None, ["'tinny' is unknown", "Nearest: tiny"]),
        ("ViT-B-32", None, ["needs --pretrained", "openai, laion400m_e31", "PATH", "none"]),
        ("ViT-B-32", "opnai", ["'opnai' is no tag of ViT-B-32 and no file", "Did you mean 'openai'?", "laion400m_e31"]),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_and_the_known(model, pretrained, parts):
    with pytest.raises(EncoderError) as error:
        load_encoder(model, pretrained)
    for part in parts:
        assert part in str(error.value)


def test_an_unknown_precision_is_refused(tiny):
    with pytest.raises(EncoderError, match=r"'fp8' is unknown\. Accepted: auto, fp32, bf16, fp16"):
        load_encoder("tiny", None, precision="fp8")


def test_weights_of_another_model_and_a_file_of_none_are_refused(small, tmp_path):
    torch.save({"visual.proj": torch.zeros(2, 2)}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("not weights")
    for name in ("other.pt", "text.pt"):
        with pytest.raises(EncoderError, match=r"could not be loaded\. Tried: the local file\. Reason: "):
            load_encoder(small, str(tmp_path / name))
    with pytest.raises(EncoderError, match="holds no weights"):
        load_encoder(f"local-dir:{tmp_path / 'nowhere'}", None)


def test_the_embedded_model_takes_no_other_weights():
    with pytest.raises(EncoderError, match="--model tiny has weights of its own: leave out --pretrained openai"):
        load_encoder("tiny", "openai")
