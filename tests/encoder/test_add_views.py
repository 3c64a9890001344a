import dataclasses
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import fastltssl.cache.reader
from fastltssl.cache.catalogue import open_cache
from fastltssl.cache.reader import read_features, stream_features
from fastltssl.commands.cli import cli
from fastltssl.encoder.add_views import add_views, beside, find_recovered
from fastltssl.encoder.clip import load_encoder
from fastltssl.encoder.extract import extract
from fastltssl.encoder.reopen import encoder_for, source_of
from fastltssl.errors import CacheError, EncoderError, RunError
from fastltssl.images import open_source
from fastltssl.images.views import parse_views
from fastltssl.live.tokens import plan_block
from fastltssl.progress import drain

DATASET, FEW, MANY = "world:mild:4:2:3", "center,weak:1,strong:1", "center,weak:3,strong:2"


def tree(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def source():
    return open_source(DATASET)


@pytest.fixture(scope="module")
def tapped():
    return load_encoder("tiny", None, taps=True)


@pytest.fixture(scope="module")
def made(source, tapped, tmp_path_factory):
    """Caches with taps: of few views, and of many at once."""
    folder = tmp_path_factory.mktemp("extend")
    for name, views in (("few", FEW), ("many", MANY)):
        drain(extract(source, tapped, parse_views(views), folder / f"{name}.zarr", templates="world"))
    return folder


@pytest.fixture
def few(made, tmp_path):
    return shutil.copytree(made / "few.zarr", tmp_path / "few.zarr")


def test_taps_are_the_two_parts_of_the_feature_before_the_last_norm(made, source):
    cache = open_cache(made / "few.zarr")
    weight, bias = torch.from_numpy(cache.ln_post)
    for group in cache.groups.values():
        assert group.taps == ("mid", "mlp")
        mid, mlp = (torch.from_numpy(read_features(group, None, tap)).float() for tap in group.taps)
        wanted = torch.from_numpy(read_features(group)).float()
        assert mid.shape == wanted.shape
        assert not torch.equal(mid, mlp)
        torch.testing.assert_close(F.layer_norm(mid + mlp, (128,), weight, bias), wanted, atol=0.02, rtol=5e-3)


def test_taps_change_no_feature_and_a_cache_without_them_says_so(made, source, tmp_path):
    drain(extract(source, load_encoder("tiny", None), parse_views(FEW), tmp_path / "a.zarr", templates="world"))
    plain, tapped = (open_cache(path).groups["train"] for path in (tmp_path / "a.zarr", made / "few.zarr"))
    assert np.array_equal(read_features(plain), read_features(tapped))
    with pytest.raises(
        CacheError, match=r"has no 'mid', only features. Taps are made by: fastltssl extract --taps mid"
    ):
        read_features(plain, None, "mid")


def test_a_tower_without_a_last_block_of_its_own_cannot_be_tapped():
    with pytest.raises(EncoderError, match="--taps mid: RN50 has no last block to tap"):
        load_encoder("RN50", "none", taps=True)
    with pytest.raises(EncoderError, match="--taps mid: tiny has no last block to tap"):
        load_encoder("tiny", None, trim=False, taps=True)


def test_added_views_give_the_bytes_of_an_extraction_of_all_of_them(made, few, source, tapped, monkeypatch):
    seen = []
    counted = dataclasses.replace(tapped, encode_parts=lambda x: (seen.append(len(x)), tapped.encode_parts(x))[1])
    summary = drain(add_views(few, source, counted, parse_views(MANY), workers=0))
    assert tree(few) == tree(made / "many.zarr")
    assert summary.views == 3 * (160 + 120)
    assert len(seen) == 3 * (3 + 2)  # slabs of train and unlabeled, three views each: no old view is encoded again
    assert sorted(path.name for path in few.parent.iterdir()) == ["few.zarr"]


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_features_too_small_or_large_for_float16_keep_their_direction(few, source, tapped, scale):
    plain = load_encoder("tiny", None)
    far = dataclasses.replace(plain, encode_parts=lambda x: plain.encode_parts(x) * scale)
    drain(extract(source, far, parse_views(FEW), few.with_name("far.zarr"), templates="world"))
    ours, theirs = (
        torch.from_numpy(read_features(open_cache(path).groups["train"])).double()
        for path in (few, few.with_name("far.zarr"))
    )
    assert F.cosine_similarity(ours, theirs, dim=-1).min() > 1 - 1e-6
    lost = dataclasses.replace(
        tapped, encode_parts=lambda x: tapped.encode_parts(x) * torch.tensor([1, 1, 1e-12])[:, None]
    )
    with pytest.raises(CacheError, match=r"features of rows .* are too small for float16"):
        drain(extract(source, lost, parse_views(FEW), few.with_name("lost.zarr"), templates="world"))


def test_stopped_anywhere_adding_views_leaves_a_cache_and_goes_on(made, few, source, tapped):
    views = parse_views(MANY)
    work = add_views(few, source, tapped, views)
    for _ in range(3):
        next(work)
    work.close()
    assert tree(few) == tree(made / "few.zarr")
    drain(add_views(few, source, tapped, views))
    assert tree(few) == tree(made / "many.zarr")


def test_a_change_of_places_killed_half_way_is_finished(made, few, monkeypatch):
    more, before = beside(few)
    shutil.copytree(made / "many.zarr", more)
    few.rename(before)  # and then the process was gone
    result = CliRunner().invoke(cli, ["cache", "add-views", str(few), "--views", MANY])
    assert "has all of these views" in str(result.exception)
    assert sorted(path.name for path in few.parent.iterdir()) == ["few.zarr"]
    assert tree(few) == tree(made / "many.zarr")


def test_caches_of_the_user_that_are_named_like_ours_are_neither_removed_nor_renamed(made, few, source, tapped):
    more, before = beside(few)
    shutil.copytree(made / "many.zarr", before)  # the user's own: it is no smaller one of few.zarr
    with pytest.raises(CacheError, match=r"few.before.zarr is in the way: .*Move it elsewhere first"):
        drain(add_views(find_recovered(str(few)), source, tapped, parse_views(MANY)))
    assert tree(before) == tree(made / "many.zarr")
    few.rename(few.with_name("kept.zarr"))
    with pytest.raises(CacheError, match="no cache"):
        find_recovered(str(few))
    assert tree(before) == tree(made / "many.zarr")
    assert not more.exists()


def test_files_of_the_user_in_a_cache_are_told_before_views_are_added(few, source, tapped):
    (few / "notes.txt").write_text("mine")
    with pytest.raises(CacheError, match=r"holds notes.txt, which is not part of the cache. Move it elsewhere first"):
        next(add_views(few, source, tapped, parse_views(MANY)))
    assert (few / "notes.txt").read_text() == "mine"
    (few / "notes.txt").unlink()
    few.with_name("link.zarr").symlink_to(few)
    with pytest.raises(CacheError, match=r"link.zarr is a link to .*few.zarr, which is not replaced through it"):
        next(add_views(few.with_name("link.zarr"), source, tapped, parse_views(MANY)))


def test_a_cache_replaced_while_views_are_added_stays_as_it_is(made, few, source, tapped):
    work = add_views(few, source, tapped, parse_views(MANY))
    next(work)
    shutil.rmtree(few)
    drain(extract(source, tapped, parse_views(FEW), few, templates="world", seed=1))
    replaced = tree(few)
    with pytest.raises(CacheError, match=r"few.zarr was replaced"):
        drain(work)
    assert tree(few) == replaced


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": None}, "provenance, precision: None is not text"),
        ({"preprocessing": {"mean": [0.5]}}, "provenance, preprocessing has no std"),
        ({"preprocessing": {"mean": [0.5], "std": [1, 1, 1]}}, r"preprocessing.mean: \[0.5\] are not three numbers"),
        ({"seed": "first"}, "provenance, seed: 'first' is not a whole number"),
    ],
)
def test_a_provenance_that_is_not_understood_is_told_when_the_encoder_is_opened_again(few, change, message):
    cache = open_cache(few)
    made = cache.attributes["provenance"] | change
    cache = cache._replace(attributes=cache.attributes | {"provenance": made})
    for again in (lambda: encoder_for(cache, "cpu"), lambda: source_of(cache)):
        with pytest.raises(RunError, match=message):
            again()


def test_the_command_adds_views_by_what_the_cache_records(made, few):
    result = CliRunner().invoke(cli, ["cache", "add-views", str(few), "--views", MANY, "--device", "cpu"])
    assert result.exit_code == 0, result.exception
    assert f"wrote {few}" in result.output
    assert tree(few) == tree(made / "many.zarr")


@pytest.mark.parametrize(
    ("views", "limit", "message"),
    [
        ("center,weak:3", None, r"Missing or another recipe: strong0 \(strong\("),
        ("center,finessl:3", None, r"Missing or another recipe: weak0 \(weak\("),
        ("center,weak:2,strong:2", 9, "was made with another dataset_fingerprint"),
    ],
)
def test_views_and_data_that_do_not_continue_the_cache_are_refused(few, tapped, views, limit, message):
    with pytest.raises(CacheError, match=message):
        drain(add_views(few, open_source(DATASET, limit=limit), tapped, parse_views(views)))


@pytest.mark.parametrize("block", [1, 2, 3])
def test_tokens_continued_through_the_remaining_blocks_are_the_features(source, made, block):
    encoder = load_encoder("tiny", None)
    parts, images = encoder.split(block), source.groups["train"]
    canvases = torch.from_numpy(np.stack([encoder.canvas(image) for image in images.read(range(len(images.ids)))]))
    tokens = parts.tokens(canvases).half()
    assert tokens.shape == (160, 37, 128)
    wanted = torch.from_numpy(read_features(open_cache(made / "few.zarr").groups["train"])).float()
    with torch.inference_mode():
        again = parts.features(tokens.float())
    assert F.cosine_similarity(again, wanted[:, 0], dim=-1).min() > 0.9999


def test_the_plan_of_tokens_gives_their_size_and_when_they_pay_off(source):
    encoder = load_encoder("tiny", None)
    plan = plan_block(source, encoder, FEW, 2)
    assert plan.bytes == 160 * 3 * 37 * 128 * 2
    assert plan.before_s > 0 < plan.after_s
    assert "480 views x 37 x 128 float16, 9 KB a view" in str(plan)
    assert "pay off from 480 visits on" in str(plan)
    with pytest.raises(EncoderError, match=r"--taps tokens@4: the tower cannot be split there. Accepted: 1 to 3"):
        plan_block(source, encoder, FEW, 4)


def test_features_streamed_in_parts_are_those_read_at_once(made):
    group = open_cache(made / "many.zarr").groups["train"]
    group = group._replace(broken=(5, 70, 159), shape=(157, *group.shape[1:]))
    for bytes_ in (1, 2**30):
        for views in (None, ("strong1", "center")):
            parts = list(stream_features(group, views, part_bytes=bytes_))
            assert len(parts) == (3 if bytes_ == 1 else 1)
            assert np.array_equal(np.concatenate(parts), read_features(group, views))
    assert read_features(group).shape == (157, 6, 128)


def test_features_larger_than_the_memory_lie_in_a_file_without_a_name(made, monkeypatch):
    group = open_cache(made / "many.zarr").groups["train"]
    wanted = read_features(group)
    monkeypatch.setattr(fastltssl.cache.reader, "available_memory", lambda: 0)
    mapped = read_features(group)
    assert isinstance(mapped.base.base, np.memmap) or isinstance(mapped.base, np.memmap)
    assert np.array_equal(mapped, wanted)
    assert sorted(path.name for path in made.iterdir()) == ["few.zarr", "many.zarr"]
    assert torch.equal(torch.from_numpy(mapped)[[3, 0, 159]], torch.from_numpy(wanted)[[3, 0, 159]])


def test_the_memory_that_is_free_is_known():
    assert 2**20 < fastltssl.cache.reader.available_memory() < 2**50
