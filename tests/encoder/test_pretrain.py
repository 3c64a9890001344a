"""How the tiny CLIP is trained: short runs, but of the code that made the shipped weights."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastltssl.encoder import pretrain
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.pretrain import BROAD, EASY, Recipe
from fastltssl.encoder.weights import TINY
from fastltssl.errors import PretrainError
from fastltssl.images.world.world import caption_prior

SHORT = Recipe(shapes=6, warmup_steps=4, caption_steps=3, batch=12)
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came with torch 2.9")


def train(out, recipe=SHORT, stop_after=None, **options):
    """The records of a run; killed after so many of them where that is asked."""
    records = []
    for record in pretrain.pretrain(recipe, out, **options):
        records.append(record)
        if len(records) == stop_after:
            break
    return records


def weights(folder):
    return load_file(folder / "open_clip_model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("Muon came with torch 2.9")
    folder = tmp_path_factory.mktemp("trained")
    return folder, train(folder)


def test_a_run_counts_both_stages_and_leaves_a_model_that_loads(trained):
    folder, records = trained
    assert [(record.part, record.done, record.total) for record in records] == [
        *[("warm-up", step, 7) for step in range(1, 5)], *[("captions", step, 7) for step in range(5, 8)],
    ]  # fmt: skip
    encoder = load_encoder(f"local-dir:{folder}", None)
    features = encoder.encode(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))
    assert features.shape == (2, 128)
    assert encoder.projection.shape == (128, 128)
    assert not (folder / pretrain.CHECKPOINT).exists()
    record = json.loads((folder / "training.json").read_text())
    assert record["recipe"]["shapes"] == 6
    assert record["warm_up_images"] == 48
    assert record["caption_pairs"] == 36


def test_two_runs_of_one_recipe_agree_to_the_bit_and_another_seed_does_not(trained, tmp_path):
    folder, _ = trained
    train(tmp_path / "again")
    train(tmp_path / "other", replace(SHORT, seed=1))
    assert same(weights(folder), weights(tmp_path / "again"))
    assert not same(weights(folder), weights(tmp_path / "other"))


@pytest.mark.parametrize("stop", [2, 5], ids=["in the warm-up", "on captions"])
def test_a_killed_run_goes_on_to_the_same_weights(stop, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "EVERY", 1)
    train(tmp_path, stop_after=stop)
    with pytest.raises(PretrainError, match=r"of a run that was stopped. Go on with --resume"):
        train(tmp_path)
    with pytest.raises(PretrainError, match="another recipe: seed, batch differ"):
        train(tmp_path, replace(SHORT, seed=4, batch=7), resume=True)
    rest = train(tmp_path, resume=True)
    assert rest[0].done in (stop, stop + 1)  # a record is yielded before its step is saved
    assert same(weights(trained[0]), weights(tmp_path))


def test_a_warm_up_may_be_taken_from_another_run_but_only_the_same_one(trained, tmp_path):
    folder, _ = trained
    records = train(tmp_path / "taken", warmed=folder)
    assert [record.part for record in records] == ["captions"] * 3
    assert same(weights(folder), weights(tmp_path / "taken"))
    train(tmp_path / "control", replace(SHORT, negatives="batch"), warmed=folder)
    assert not same(weights(folder), weights(tmp_path / "control"))
    with pytest.raises(PretrainError, match="is of another warm-up"):
        train(tmp_path / "wrong", replace(SHORT, shapes=7), warmed=folder)
    with pytest.raises(PretrainError, match=r"there is no warmup\.safetensors"):
        train(tmp_path / "none", warmed=tmp_path)


@needs_muon
def test_unknown_negatives_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(PretrainError, match="negatives 'memory' is not one of bank, batch"):
        train(tmp_path / "out", replace(SHORT, negatives="memory"))
    assert not (tmp_path / "out").exists()


def test_labels_of_the_captions_follow_the_known_prior():
    prior = caption_prior()
    labels = pretrain._drawn(SHORT, "class", np.arange(40_000), prior)
    share = np.bincount(labels, minlength=40) / len(labels)
    assert np.abs(share - prior).max() < 4 * np.sqrt(prior.max() / len(labels))


def test_styles_blend_from_easy_to_broad():
    start, middle, stop = (pretrain._between(EASY, BROAD, share) for share in (0.0, 0.5, 1.0))
    assert start == replace(EASY, backgrounds=BROAD.backgrounds)
    for field in fields(BROAD):
        assert getattr(stop, field.name) == pytest.approx(getattr(BROAD, field.name))
    assert middle.scale == pytest.approx((0.65, 0.975))
    assert middle.rotation == pytest.approx(32.5)


def test_training_leaves_the_number_of_threads_as_it_was(tmp_path):
    before = torch.get_num_threads()
    train(tmp_path, stop_after=1)
    assert torch.get_num_threads() == before


def test_the_shipped_weights_say_how_they_were_made():
    record = json.loads((TINY / "training.json").read_text())
    assert record["recipe"] == json.loads(json.dumps(vars(Recipe())))
    assert record["bytes"] == Path(TINY / "open_clip_model.safetensors").stat().st_size <= 6e6
