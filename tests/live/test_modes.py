import copy
import math

import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from safetensors.torch import load, save

from fastltssl.encoder import towers
from fastltssl.errors import TuningError
from fastltssl.functional.adapters import adapted_feature
from fastltssl.live.modes import Mode, bottleneck_width, describe, load_state, parse_mode, state, trainable, tuned

SIDE = 16
SMALL = ["fft", "adaptformer:3", "lora:2", "vpt:5", "bitfit", "lastk:1"]  # one text of every mode
INSERTED = ["adaptformer:3", "lora:2", "vpt:5"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_vit(**change):
    """A ViT of two blocks, width 32 and five tokens in float64, with no bias zero and no norm plain, as they start."""
    settings = {"image_size": SIDE, "patch_size": 8, "width": 32, "layers": 2, "heads": 4, "mlp_ratio": 2.0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = VisionTransformer(**settings | change).double().eval()
        with torch.no_grad():
            for value in tower.parameters():
                value.add_(0.1 * torch.randn_like(value))
    tower.proj = None
    return tower


def images(n=3):
    return torch.randn(n, 3, SIDE, SIDE, generator=seeded(1), dtype=torch.float64)


def small(text, tower=None, n_classes=10):
    return tuned(tower or small_vit(), parse_mode(text), n_classes=n_classes, generator=seeded())


def disturbed(tower, spread=0.3):
    """The same tower, no trainable number where it started."""
    generator = seeded(2)
    with torch.no_grad():
        for value in trainable(tower).values():
            value.add_(spread * torch.randn(value.shape, generator=generator, dtype=value.dtype))
    return tower


def count(tower):
    return sum(value.numel() for value in trainable(tower).values())


@pytest.fixture(scope="module")
def base():
    """ViT-B-16 without memory for its numbers: they can be counted."""
    with torch.device("meta"):
        tower = VisionTransformer(224, 16, 768, 12, 12, 4.0)
    tower.proj = None
    return tower


BLOCK = 12 * 768**2 + 13 * 768  # numbers of a block of ViT-B-16


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("adaptformer", 101_436),
        ("adaptformer:4", 12 * ((2 * 4 + 3) * 768 + 4 + 1)),
        ("adaptformer:64", 12 * ((2 * 64 + 3) * 768 + 64 + 1)),
        ("lora", 12 * 2 * 2 * 8 * 768),
        ("lora:3", 12 * 2 * 2 * 3 * 768),
        ("vpt", 460_800),
        ("vpt:10", 92_160),
        ("bitfit", 12 * 11 * 768 + 2 * 768),
        ("lastk:1", BLOCK + 2 * 768),
        ("lastk:12", 12 * BLOCK + 2 * 768),
        ("fft", 12 * BLOCK + 4 * 768 + 768 + 197 * 768 + 3 * 16 * 16 * 768),
    ],
)
def test_a_mode_of_vit_b_16_and_100_classes_trains_the_numbers_its_paper_counts(base, text, wanted):
    assert count(tuned(base, parse_mode(text), n_classes=100, generator=seeded())) == wanted


@pytest.mark.parametrize(("n_classes", "width"), [(10, 1), (47, 1), (48, 2), (100, 4), (1000, 32), (8142, 256)])
def test_the_bottleneck_follows_the_number_of_classes(base, n_classes, width):
    assert bottleneck_width(n_classes, 12) == width == 2 ** max(0, math.floor(math.log2(n_classes / 24)))
    tower = tuned(base, Mode("adaptformer"), n_classes=n_classes, generator=seeded())
    assert trainable(tower)["transformer.resblocks.11.mlp.adapter.down"].shape == (768, width)


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("text", SMALL)
def test_features_are_unchanged_at_first_but_for_prompts(text, trim):
    plain = small_vit(ls_init_value=0.3)
    wanted = plain(images())
    if trim:
        assert towers.trim_last_block(plain, SIDE)
    found = small(text, plain)(images())
    assert found.shape == (3, 32)
    if text.startswith("vpt"):
        assert (found - wanted).abs().max() > 1e-3
    else:
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("text", SMALL)
def test_the_tower_given_stays_as_it_was(text):
    plain = small_vit()
    before, names = copy.deepcopy(plain.state_dict()), [name for name, _ in plain.named_modules()]
    disturbed(small(text, plain))
    assert [name for name, _ in plain.named_modules()] == names
    assert all(value.requires_grad for value in plain.parameters())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, before[name])


OWN = {  # what the names of a mode's parameters must hold, and how many there are
    "fft": ("", 3 + 2 + 2 * 12 + 2),
    "adaptformer:3": (".mlp.adapter.", 2 * 6),
    "lora:2": (".attn.", 2 * 4),
    "vpt:5": (".prompts", 2),
    "bitfit": ("bias", 2 * 6 + 2),
    "lastk:1": ("", 12 + 2),
}


@pytest.mark.parametrize("trim", [False, True])
@pytest.mark.parametrize("text", SMALL)
def test_only_what_the_mode_names_gets_gradients(text, trim):
    plain = small_vit()
    if trim:
        assert towers.trim_last_block(plain, SIDE)
    tower = disturbed(small(text, plain))
    tower(images()).square().sum().backward()
    own = trainable(tower)
    part, number = OWN[text]
    assert len(own) == number
    assert all(part in name for name in own)
    if text == "lastk:1":
        assert all(name.startswith(("transformer.resblocks.1.", "ln_post.")) for name in own)
    trains = {id(value) for value in own.values()}
    for value in tower.parameters():
        assert (value.grad is not None) == (id(value) in trains)
    assert all(value.grad.isfinite().all() and value.grad.abs().max() > 0 for value in own.values())


@pytest.mark.parametrize("text", SMALL)
def test_gradients_are_those_of_finite_differences(text):
    tower, x = disturbed(small(text)), images()
    weight = torch.randn(3, 32, generator=seeded(3), dtype=torch.float64)
    (tower(x) * weight).sum().backward()
    step, generator = 1e-5, seeded(4)
    for name, value in trainable(tower).items():
        way = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        start, ends = value.detach().clone(), []
        with torch.no_grad():
            for sign in (1, -1):
                value.copy_(start + sign * step * way)
                ends.append((tower(x) * weight).sum())
            value.copy_(start)
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close((value.grad * way).sum(), slope, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize("trim", [False, True])
def test_adaptformer_in_the_last_block_is_the_head_trained_from_cached_taps(trim):
    plain = small_vit()
    tapped = copy.deepcopy(plain)
    assert towers.trim_last_block(tapped, SIDE, has_taps=True)
    with torch.no_grad():
        _, taps = tapped(images())
    if trim:
        assert towers.trim_last_block(plain, SIDE)
    tower = small("adaptformer:3", plain)
    last = "transformer.resblocks.1.mlp.adapter."
    params = {name.removeprefix(last): value for name, value in trainable(tower).items() if name.startswith(last)}
    with torch.no_grad():
        for value in params.values():  # Up of the other block stays zero
            value.add_(0.3 * torch.randn(value.shape, generator=seeded(5), dtype=torch.float64))
        wanted = adapted_feature(params, taps.flatten(1), torch.stack((plain.ln_post.weight, plain.ln_post.bias)))
        found = tower(images())
        assert (found - plain(images())).abs().max() > 1e-3
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_adaptformer_adds_the_adapter_of_mid_in_every_block():
    plain = small_vit(ls_init_value=0.3)
    tower = disturbed(small("adaptformer:3", plain))
    own = {name: value.detach() for name, value in trainable(tower).items()}
    with torch.no_grad():
        x = plain._embeds(images())
        for i, block in enumerate(plain.transformer.resblocks):
            p = {key: own[f"transformer.resblocks.{i}.mlp.adapter.{key}"] for key in ("down", "up", "norm", "strength")}
            bias = {key: own[f"transformer.resblocks.{i}.mlp.adapter.{key}_bias"] for key in ("down", "up")}
            mid = x + block.ls_1(block.attention(block.ln_1(x)))
            centered = mid - mid.mean(dim=-1, keepdim=True)
            normed = centered / (mid.var(dim=-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
            hidden = ((normed * p["norm"][0] + p["norm"][1]) @ p["down"] + bias["down"]).clamp(min=0)
            x = mid + block.ls_2(block.mlp(block.ln_2(mid))) + p["strength"] * (hidden @ p["up"] + bias["up"])
        torch.testing.assert_close(tower(images()), plain.ln_post(x)[:, 0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("trim", [False, True])
def test_lora_equals_a_tower_with_the_products_added_to_its_weights(trim):
    plain = small_vit()
    tower = disturbed(small("lora:2", plain))
    own = trainable(tower)
    with torch.no_grad():
        for i, block in enumerate(plain.transformer.resblocks):
            for first, part in ((0, "query"), (64, "value")):  # rows of in_proj_weight are those of q, k, v
                down, up = (own[f"transformer.resblocks.{i}.attn.{part}.{way}"] for way in ("down", "up"))
                block.attn.in_proj_weight[first : first + 32] += (down @ up).T
        wanted = plain(images())
    if trim:
        cut = small_vit()
        assert towers.trim_last_block(cut, SIDE)
        other = small("lora:2", cut)
        load_state(other, state(tower))
        tower = other
    torch.testing.assert_close(tower(images()), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("trim", [False, True])
def test_prompts_follow_the_class_token_and_are_replaced_before_the_next_block(trim):
    plain = small_vit()
    with torch.no_grad():
        x = plain._embeds(images())
    if trim:
        assert towers.trim_last_block(plain, SIDE)
    tower = small("vpt:5", plain)
    first, second = (trainable(tower)[f"transformer.resblocks.{i}.prompts"].detach() for i in range(2))
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    assert first.abs().max() <= bound
    assert first.abs().max() > 0.9 * bound
    with torch.no_grad():
        blocks = small_vit().transformer.resblocks
        x = blocks[0](torch.cat((x[:, :1], first.expand(3, 5, 32), x[:, 1:]), dim=1))
        assert x.shape == (3, 1 + 5 + 4, 32)
        x = blocks[1](torch.cat((x[:, :1], second.expand(3, 5, 32), x[:, 6:]), dim=1))
        torch.testing.assert_close(tower(images()), plain.ln_post(x)[:, 0], atol=1e-9, rtol=0)


@pytest.mark.parametrize("text", SMALL)
def test_train_mode_and_patch_dropout_change_nothing(text):
    tower = disturbed(small(text, small_vit(patch_dropout=0.5)))
    with torch.no_grad():
        wanted = tower(images())
        torch.testing.assert_close(tower.train()(images()), wanted, atol=1e-9, rtol=0)


@pytest.mark.parametrize("text", SMALL)
def test_the_trained_part_survives_a_file_and_fits_a_trimmed_tower_too(text):
    tower = disturbed(small(text))
    written = load(save(state(tower)))
    assert written.keys() == trainable(tower).keys()
    cut = small_vit()
    assert towers.trim_last_block(cut, SIDE)
    for plain in (small_vit(), cut):
        other = small(text, plain)
        load_state(other, written)
        torch.testing.assert_close(other(images()), tower(images()), atol=1e-9, rtol=0)


def test_the_names_of_weights_are_those_of_open_clip_and_a_state_is_a_copy():
    plain = small_vit().to(memory_format=torch.channels_last)
    tower = small("fft", plain)
    written = state(tower)
    assert written.keys() == plain.state_dict().keys()
    assert all(value.is_contiguous() for value in written.values())
    disturbed(tower)
    assert torch.equal(written["conv1.weight"], plain.conv1.weight)


def test_tensors_that_do_not_fit_are_named_and_nothing_is_written():
    tower = small("lora:2")
    before = state(tower)
    given = dict(disturbed(copy.deepcopy(tower)).named_parameters())
    given = {name: value.detach() for name, value in given.items() if value.requires_grad}
    name = "transformer.resblocks.0.attn.query.down"
    for change, part in (
        ({name: torch.zeros(32, 3)}, f"1 misshapen: {name} (32, 3) for (32, 2). Accepted: the 8 tensors"),
        ({"other": torch.zeros(1)}, "1 unexpected: other. Accepted"),
        ({name: None}, f"1 missing: {name}. Accepted"),
    ):
        wrong = {key: value for key, value in (given | change).items() if value is not None}
        with pytest.raises(TuningError) as error:
            load_state(tower, wrong)
        assert part in str(error.value)
    with pytest.raises(TuningError, match=r"8 missing: .*; 2 unexpected: .*prompts"):
        load_state(tower, state(small("vpt:5")))
    assert all(torch.equal(value, before[name]) for name, value in state(tower).items())


@pytest.mark.parametrize("text", ["adaptformer", "lora", "vpt:5"])
def test_the_same_seed_starts_the_same_and_touches_no_other_generator(text):
    known = torch.random.get_rng_state()
    first, second = state(small(text)), state(small(text))
    assert torch.equal(torch.random.get_rng_state(), known)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("text", INSERTED)
def test_the_modules_put_in_work_under_autocast_and_keep_its_dtype(text):
    tower = disturbed(small(text).float(), spread=0.1)
    x = images().float()
    wanted = tower(x)
    seen = []
    tower.ln_post.register_forward_pre_hook(lambda _, given: seen.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        found = tower(x)
    assert seen == [torch.bfloat16]
    torch.testing.assert_close(found.float(), wanted, atol=0.1, rtol=0.1)
    found.float().sum().backward()
    assert all(value.grad.dtype == torch.float32 for value in trainable(tower).values())


def test_prompts_pass_through_gradient_checkpointing():
    tower = small("vpt:5")
    wanted = tower(images())
    tower.set_grad_checkpointing()
    torch.testing.assert_close(tower(images()), wanted, atol=1e-9, rtol=0)


def test_taps_are_taken_off():
    plain = small_vit()
    wanted = plain(images())
    assert towers.trim_last_block(plain, SIDE, has_taps=True)
    tower = small("lastk:1", plain)
    torch.testing.assert_close(tower(images()), wanted, atol=1e-9, rtol=0)
    assert "ln_post.weight" in trainable(tower)
    assert len(plain(images())) == 2


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("fft", Mode("fft")), ("adaptformer", Mode("adaptformer")), ("adaptformer:16", Mode("adaptformer", 16)),
        ("lora:4", Mode("lora", 4)), ("vpt", Mode("vpt")), ("bitfit", Mode("bitfit")), ("lastk:2", Mode("lastk", 2)),
        ("lastblock:8", Mode("lastblock", 8)),
    ],
)  # fmt: skip
def test_a_mode_is_read_and_written_as_text(text, mode):
    assert parse_mode(text) == mode
    assert str(mode) == text


ALL = "Accepted: fft, adaptformer[:H], lora[:R], vpt[:P], bitfit, lastk:K, lastblock[:H]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lroa", f"--live 'lroa' is unknown. Did you mean 'lora'? {ALL}"),
        ("", f"--live '' is unknown. {ALL}"),
        ("lora:", f"--live 'lora:' is not of the form lora[:R], R a whole number from 1. {ALL}"),
        ("lora:0", f"--live 'lora:0' is not of the form lora[:R], R a whole number from 1. {ALL}"),
        ("vpt:x", f"--live 'vpt:x' is not of the form vpt[:P], P a whole number from 1. {ALL}"),
        ("lastk", f"--live 'lastk' is not of the form lastk:K, K a whole number from 1. {ALL}"),
        ("lastk:-1", f"--live 'lastk:-1' is not of the form lastk:K, K a whole number from 1. {ALL}"),
        ("bitfit:3", f"--live 'bitfit:3' is not of the form bitfit, without a number. {ALL}"),
        ("fft:", f"--live 'fft:' is not of the form fft, without a number. {ALL}"),
    ],
)
def test_a_wrong_mode_is_refused_with_the_form_and_the_modes(text, message):
    with pytest.raises(TuningError) as error:
        parse_mode(text)
    assert str(error.value) == message


def test_more_blocks_than_there_are_are_refused():
    with pytest.raises(TuningError) as error:
        small("lastk:3")
    assert str(error.value) == "--live lastk:3: the tower has 2 blocks. Accepted: 1 to 2 of them"


OTHERS = {  # side of the images, and the tower
    "resnet": (32, lambda: ModifiedResNet(layers=[1, 1, 1, 1], output_dim=8, heads=8, image_size=32, width=16)),
    "timm": (160, lambda: TimmModel("test_vit", 8, image_size=160, pool="", proj="linear")),
    "mean pooling": (SIDE, lambda: small_vit(pool_type="avg")),
    "other blocks": (SIDE, lambda: small_vit(qk_norm=True)),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_tower_without_the_blocks_of_clip_takes_fft_only(kind):
    side, make = OTHERS[kind]
    with torch.random.fork_rng():
        plain = make().double().eval()
    x = torch.randn(2, 3, side, side, generator=seeded(), dtype=torch.float64)
    tower = small("fft", plain)
    torch.testing.assert_close(tower(x), plain(x))
    assert trainable(tower).keys() == dict(plain.named_parameters()).keys()
    for text in SMALL[1:]:
        with pytest.raises(TuningError) as error:
            small(text, plain)
        name = type(plain).__name__
        assert str(error.value) == f"--live {text}: {name} is no CLIP ViT that pools its class token. Accepted: fft"


def test_a_line_says_what_trains(base):
    def line(text):
        mode = parse_mode(text)
        return describe(tuned(base, mode, n_classes=100, generator=seeded()), mode)

    assert line("adaptformer") == "adaptformer: 101,436 of 85,900,860 parameters of the tower train, 0.12 %"
    assert line("fft") == "fft: 85,799,424 of 85,799,424 parameters of the tower train, 100.00 %"
    assert line("vpt:10") == (
        "vpt:10: 92,160 of 85,891,584 parameters of the tower train, 0.11 %. "
        "Prompts change the features before the first step"
    )
