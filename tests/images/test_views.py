import dataclasses

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as T

from fastltssl.errors import ViewError
from fastltssl.images.randaugment import randaugmented
from fastltssl.images.views import (
    DRAWS,
    FAMILIES,
    RECIPES,
    STRONG,
    WEAK,
    Recipe,
    View,
    image_key,
    make_view,
    parse_views,
    uniforms,
)
from fastltssl.images.world.world import STYLES, render

B, H = 7, 12
B2SUM = "59c7aa06560eace4"  # printf train/cat/0001.png | b2sum -l 64
GOLDEN = [0.153241, 0.440771, 0.728301]
NONE, WEAK0, WEAK1, STRONG0 = parse_views("center,weak:2,strong")


@pytest.fixture
def canvas():
    return torch.rand(B, 3, H, H, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def keys():
    return np.array([image_key(f"train/{row}") for row in range(B)], np.uint64)


def draws(view, keys):
    """The eleven numbers of each image, in the order of views.DRAWS."""
    return uniforms(3, view.name, keys, 11)


def test_views_are_numbered_in_the_order_given():
    names = [view.name for view in parse_views("center, strong:2,weak:3")]
    assert names == ["center", "strong0", "strong1", "weak0", "weak1", "weak2"]
    assert [view.index for view in parse_views("center,weak:3")] == [0, 0, 1, 2]
    assert [view.name for view in parse_views("center,weak")] == ["center", "weak0"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("weak:2", "does not begin with center"),
        ("weak:2,center", "does not begin with center"),
        ("center,weak:0", "'weak:0'"),
        ("center,weak:257", "'weak:257'"),
        ("center,weak:", "'weak:'"),
        ("center,wild:2", "'wild:2'"),
        ("center:2,weak:2", "'center:2'"),
        ("center,weak:2,weak:1", "'weak:1'"),
        ("center,,weak:2", "''"),
        ("", "''"),
    ],
)
def test_a_list_of_views_that_cannot_be_read_is_refused_with_the_accepted_form(text, why):
    with pytest.raises(ViewError) as error:
        parse_views(text)
    assert why in str(error.value)
    assert "Accepted: center first, then weak:N and strong:N, each once, N from 1 to 256." in str(error.value)
    assert "--views center,weak:4,strong:4" in str(error.value)


def test_the_text_form_of_each_recipe_is_what_caches_were_made_with():
    assert {name: str(recipe) for name, recipe in RECIPES.items()} == {
        "center": "center",
        "weak": "weak(flip=0.5,shift=0.0625)",
        "strong": "strong(flip=0.5,shift=0.0625,turn=15,scale=0.1,shear=0.1,"
        "brightness=0.2,contrast=0.25,saturation=0.3,cutout=0.15)",
    }


def test_a_key_is_the_same_on_every_machine():
    assert image_key("train/cat/0001.png") == int.from_bytes(bytes.fromhex(B2SUM), "little")
    assert len({image_key(f"{row}") for row in range(1000)}) == 1000


def test_draws_are_the_splitmix_numbers_of_plain_integers(keys):
    whole = 2**64

    def mixed(x):
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % whole
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % whole
        return x ^ (x >> 31)

    numbers = uniforms(3, "weak1", keys, 4)
    for row, key in enumerate(keys.tolist()):
        start = mixed(key ^ image_key("3/weak1"))
        for place in range(4):
            wanted = (mixed((start + (place + 1) * 0x9E3779B97F4A7C15) % whole) >> 40) / 2**24
            assert numbers[row, place] == np.float32(wanted)


def test_draws_are_spread_evenly():
    numbers = uniforms(0, "strong0", np.arange(20000, dtype=np.uint64), 11)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.01)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(11)).max() < 0.03


def test_the_center_view_is_the_canvas(canvas, keys):
    assert torch.equal(make_view(canvas, NONE, keys, 3), canvas)


@pytest.mark.parametrize("view", [WEAK0, STRONG0], ids=lambda view: view.name)
def test_a_view_does_not_depend_on_the_batch_or_the_order(canvas, keys, view):
    whole = make_view(canvas, view, keys, 3)
    order = np.array([4, 1, 6, 0, 3])
    assert torch.equal(make_view(canvas[order], view, keys[order], 3), whole[order])
    for row in range(B):
        assert torch.equal(make_view(canvas[row : row + 1], view, keys[row : row + 1], 3)[0], whole[row])


def test_views_differ_by_name_by_image_and_by_seed(canvas, keys):
    alike = canvas[:1].expand(B, 3, H, H)
    of_images = make_view(alike, STRONG0, keys, 3)
    assert len({image.numpy().tobytes() for image in of_images}) == B
    for view, seed in ((WEAK0, 3), (WEAK1, 3), (STRONG0, 4)):
        assert not torch.equal(make_view(alike, view, keys, seed), of_images)


def test_views_stay_in_range_and_leave_the_canvas_alone(canvas, keys):
    canvas = (canvas > 0.5).float()
    before = canvas.clone()
    for view in (WEAK0, STRONG0):
        made = make_view(canvas, view, keys, 3)
        assert made.shape == canvas.shape
        assert made.min() >= 0
        assert made.max() <= 1
        assert not torch.equal(made, canvas)
    assert torch.equal(canvas, before)


def test_a_weak_view_is_a_flip_then_a_shift_by_whole_pixels_with_mirrored_edges(canvas, keys):
    view = dataclasses.replace(WEAK0, recipe=dataclasses.replace(WEAK, shift=0.25))
    made = make_view(canvas, view, keys, 3).numpy()
    shifts = set()
    for row, (flip, across, along, *_) in enumerate(draws(view, keys)):
        image = canvas[row].numpy()
        image = image[:, :, ::-1] if flip < 0.5 else image
        right, down = (int(np.round((2 * draw - 1) * 0.25 * H)) for draw in (across, along))
        shifts.add((right, down))
        padded = np.pad(image, ((0, 0), (H, H), (H, H)), mode="symmetric")
        np.testing.assert_allclose(made[row], padded[:, H - down : 2 * H - down, H - right : 2 * H - right], atol=1e-5)
    assert len(shifts) > 4


def test_a_turn_moves_the_corners_as_a_rotation_does(keys):
    """A ramp along x, turned by t about the centre, is cos t X - sin t Y at (X, Y)."""
    recipe = Recipe("turned", turn=30)
    place = (torch.arange(H) + 0.5) * 2 / H - 1
    ramp = (0.5 + 0.25 * place).expand(B, 3, H, H)
    made = make_view(ramp, View("turned0", recipe, 0), keys, 3)
    turn = torch.from_numpy((2 * draws(View("turned0", recipe, 0), keys)[:, 3] - 1) * np.pi / 6)[:, None, None]
    source = turn.cos() * place - turn.sin() * place[:, None]
    inner = slice(4, 8)
    torch.testing.assert_close(made[:, 0, inner, inner], (0.5 + 0.25 * source)[:, inner, inner], atol=1e-5, rtol=0)


def test_colours_change_by_saturation_then_contrast_then_brightness(canvas, keys):
    recipe = Recipe("coloured", brightness=0.2, contrast=0.3, saturation=0.4)
    view = View("coloured0", recipe, 0)
    made = make_view(canvas, view, keys, 3).numpy()
    factors = 1 + (2 * draws(view, keys)[:, 6:9] - 1) * np.array([0.2, 0.3, 0.4])
    for row, (brightness, contrast, saturation) in enumerate(factors):
        image = canvas[row].numpy()
        grey = image.mean(axis=0)
        image = grey + (image - grey) * saturation
        image = ((image - 0.5) * contrast + 0.5) * brightness
        np.testing.assert_allclose(made[row], np.clip(image, 0, 1), atol=1e-5)


def test_the_cutout_is_a_grey_square_of_its_side(keys):
    view = View("cut0", Recipe("cut", cutout=0.5), 0)
    made = make_view(torch.zeros(B, 3, H, H), view, keys, 3)
    is_grey = made == 0.5
    assert torch.equal(is_grey, is_grey[:, :1].expand_as(is_grey))
    for row, (across, along) in enumerate(draws(view, keys)[:, 9:11] * H):
        columns = np.abs(np.arange(H) + 0.5 - across) < 0.25 * H
        rows = np.abs(np.arange(H) + 0.5 - along) < 0.25 * H
        np.testing.assert_array_equal(is_grey[row, 0].numpy(), rows[:, None] & columns)


def test_the_strong_view_contains_every_change_of_the_weak_one():
    for field in dataclasses.fields(Recipe)[1:]:
        assert getattr(STRONG, field.name) >= getattr(WEAK, field.name)
        assert getattr(STRONG, field.name) > 0 or field.name in ("zoom", "crop", "randaugment")


def test_the_pixels_of_a_strong_view_are_those_that_caches_were_made_with():
    ramp = torch.linspace(0, 1, 3 * H * H).view(1, 3, H, H)
    key = np.array([image_key("train/000123")], np.uint64)
    made = make_view(ramp, STRONG0, key, 0)[0]
    np.testing.assert_allclose(made[:, 3, 8].numpy(), GOLDEN, atol=1e-4)


# Families: the augmentations of published code


def test_a_family_stands_for_its_views_of_each_strength():
    views = parse_views("center,finessl:2")
    assert [view.name for view in views] == ["center", "weak0", "weak1", "strong0", "strong1"]
    assert str(views[1].recipe) == "finessl.weak(flip=0.5,shift=0.196,zoom=0.143)"
    assert str(views[3].recipe) == "finessl.strong(flip=0.5,shift=0.196,cutout=0.071,zoom=0.143,randaugment=2)"
    assert [view.name for view in parse_views("center,lift:2,strong:1")] == ["center", "weak0", "weak1", "strong0"]
    for text in ("center,weak:1,lift:1", "center,fixmatch:1,strong:2", "center,fixmatch:1,finessl:1"):
        with pytest.raises(ViewError, match="repeated"):
            parse_views(text)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_views_of_a_family_depend_on_the_image_alone(family, canvas, keys):
    for view in parse_views(f"center,{family}")[1:]:
        whole = make_view(canvas, view, keys, 3)
        assert whole.shape == canvas.shape
        assert whole.min() >= 0
        assert whole.max() <= 1
        order = np.array([4, 0, 6])
        torch.testing.assert_close(make_view(canvas[order], view, keys[order], 3), whole[order], rtol=0, atol=0)
        assert (whole != canvas).flatten(1).any(dim=1).all()


STRONGEST = [STRONG0, *(parse_views(f"center,{family}")[-1] for family in FAMILIES)]


@pytest.mark.parametrize("side", [12, 49])
@pytest.mark.parametrize("view", STRONGEST, ids=lambda view: view.recipe.name)
def test_pixels_are_the_same_alone_and_in_a_slab_of_64_padded_rows(view, side):
    n, slab = 61, 64
    canvas, keys = torch.zeros(slab, 3, side, side), np.zeros(slab, np.uint64)
    canvas[:n] = pictures(n, side, side)
    keys[:n] = [image_key(f"train/{row}") for row in range(n)]
    whole = make_view(canvas, view, keys, 3)
    for size in (1, 7):
        starts = range(0, n, size)
        parts = [make_view(canvas[i : i + size], view, keys[i : i + size], 3) for i in starts]
        assert torch.equal(torch.cat(parts)[:n], whole[:n])


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_randaugment_never_waits_for_a_gpu_and_makes_the_pixels_of_a_cpu():
    images = pictures(64, 48, 48)
    draw = dict(zip(DRAWS, uniforms(3, "strong0", np.arange(64, dtype=np.uint64), len(DRAWS)).T, strict=True))
    on_gpu = images.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        changed = randaugmented(on_gpu, 2, draw)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(changed.cpu(), randaugmented(images, 2, draw), rtol=0, atol=1e-6)


def test_a_zoom_shows_the_middle_larger(keys):
    x = torch.linspace(-1, 1, 65)
    ramp = x.expand(B, 3, 65, 65) / 2 + 0.5
    view = View("weak0", Recipe("zoomed", zoom=0.25), 0)
    shown = make_view(ramp, view, keys, 0)[:, 0, 32] * 2 - 1
    torch.testing.assert_close(shown[:, 5:60], (x / 1.25).expand(B, 65)[:, 5:60], atol=2e-2, rtol=0)


def test_a_crop_covers_the_drawn_area_at_the_drawn_place():
    n, side = 200, 33
    keys = np.array([image_key(f"train/{row}") for row in range(n)], np.uint64)
    x = torch.linspace(0, 1, side)
    canvas = torch.stack([x.expand(side, side), x[:, None].expand(side, side), torch.zeros(side, side)]).expand(
        n, 3, side, side
    )
    view = View("weak0", Recipe("cropped", crop=0.25), 0)
    shown = make_view(canvas, view, keys, 0)
    wide = shown[:, 0, 16, -3] - shown[:, 0, 16, 2]
    high = shown[:, 1, -3, 16] - shown[:, 1, 2, 16]
    area = wide * high / (28 / 32) ** 2
    drawn = 0.25 + 0.75 * torch.from_numpy(uniforms(0, "weak0", keys, len(DRAWS))[:, DRAWS.index("area")])
    fits = drawn < 0.7  # larger ones may have a side that ends at the edge
    torch.testing.assert_close(area[fits], drawn[fits], atol=0.03, rtol=0.03)
    aspect = (wide / high)[fits]
    assert 0.72 < aspect.min() < 0.8
    assert 1.25 < aspect.max() < 1.38


def chosen(op, level, sign):
    """Draws that decide for these operations, levels 1 to 10 and signs, as float32."""
    op, level, sign = (np.array(draws, float) for draws in (op, level, sign))
    parts = {"op0": (op + 0.5) / 14, "level0": (level - 0.5) / 10, "sign0": 0.5 - sign / 4, "chance0": 0 * op}
    return {part: number.astype(np.float32) for part, number in parts.items()}


def operated(image, op, level, sign, aside=0.0):
    """The oracle: torchvision's operation on one image, level in (0, 1]; maps may be shifted aside by some pixels."""

    def affine(angle=0.0, right=0.0, down=0.0, shear=(0.0, 0.0)):
        shift = [round(right * image.shape[-1]) + aside, round(down * image.shape[-2]) + aside]
        return T.affine(image, angle=angle, translate=shift, scale=1.0, shear=list(shear), fill=[0.5] * 3)

    slant = float(np.degrees(np.arctan(0.3 * level))) * sign
    factor = 0.05 + 0.9 * level
    operations = (
        lambda: image,
        lambda: T.autocontrast(image),
        lambda: T.equalize(image),
        lambda: T.adjust_brightness(image, factor),
        lambda: T.adjust_saturation(image, factor),
        lambda: T.adjust_contrast(image, factor),
        lambda: T.adjust_sharpness(image, factor),
        lambda: T.posterize(image, 4 + int(4 * level)) if level < 1 else image,
        lambda: T.solarize(image, 1 - level),
        lambda: affine(angle=30 * level * sign),
        lambda: affine(shear=(slant, 0.0)),
        lambda: affine(shear=(0.0, slant)),
        lambda: affine(right=0.3 * level * sign),
        lambda: affine(down=0.3 * level * sign),
    )
    return operations[op]().clamp(0, 1)


def pictures(number, height, width):
    """Noise; the first has a channel of one value, the second whole grey levels."""
    images = torch.rand(number, 3, height, width, generator=torch.Generator().manual_seed(6))
    images[0, 1] = 0.3
    images[1] = (images[1] * 255).round() / 255
    return images


@pytest.mark.parametrize("op", range(14))
@pytest.mark.parametrize(("height", "width"), [(48, 48), (31, 40)])
def test_each_randaugment_operation_equals_torchvision_at_every_level_and_sign(op, height, width):
    level, sign = np.repeat(np.arange(1, 11), 2), np.tile([1, -1], 10)
    images = pictures(20, height, width)
    changed = randaugmented(images.clone(), 1, chosen([op] * 20, level, sign))

    def wanted(aside=0.0):
        drawn = zip(images, level, sign, strict=True)
        return torch.stack([operated(image, op, int(k) / 10, int(s), aside) for image, k, s in drawn])

    if op in (4, 5, 6):  # blends, whose products and sums round apart here
        torch.testing.assert_close(changed, wanted(), rtol=0, atol=1e-6)
    elif op < 9:
        assert torch.equal(changed, wanted())
    else:  # where a pixel comes from halfway between two, rounding decides: it is one of the two
        assert (changed != wanted()).any(dim=1).float().mean() < 0.005
        assert torch.stack([changed == wanted(aside) for aside in (0.0, 0.001, -0.001)]).any(dim=0).all()


def test_the_same_draws_decide_as_image_by_image():
    """Two operations in a row; seldom the rounding of the first may move a pixel of the second by a grey level."""
    n = 150
    draw = dict(zip(DRAWS, uniforms(3, "strong0", np.arange(n, dtype=np.uint64), len(DRAWS)).T, strict=True))
    images = pictures(n, 24, 24)
    changed = randaugmented(images.clone(), 2, draw)
    differs = 0.0
    for row, image in enumerate(images):
        for slot in range(2):
            number = {part: float(draw[f"{part}{slot}"][row]) for part in ("op", "level", "sign", "chance")}
            if number["chance"] < 0.5:
                level = (1 + int(number["level"] * 10)) / 10
                image = operated(image, int(number["op"] * 14), level, 1 if number["sign"] < 0.5 else -1)
        differs += ((changed[row] - image).abs() > 1e-6).float().mean() / n
    assert differs < 0.001


def test_the_largest_draw_decides_for_the_last_operation_at_the_last_level():
    image = pictures(2, 12, 12)[:1]
    largest = {f"{part}0": np.float32([1 - 2**-24]) for part in ("op", "level", "sign")} | {"chance0": np.float32([0])}
    assert torch.equal(randaugmented(image.clone(), 1, largest)[0], operated(image[0], 13, 1.0, -1))


def test_each_randaugment_operation_does_what_its_name_says():
    picture = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2

    def shown(op, level=0.5, sign=1):
        return randaugmented(picture[None].clone(), 1, chosen([op], [round(level * 10)], [sign]))[0]

    assert torch.equal(shown(0), picture)
    assert shown(1).amin(dim=(1, 2)).max() < 1e-6
    assert shown(1).amax(dim=(1, 2)).min() > 1 - 1e-6
    torch.testing.assert_close(shown(3, 0.5), picture * 0.5)
    assert shown(4, 0.1).std(dim=0).mean() < 0.2 * picture.std(dim=0).mean()
    assert shown(5, 0.1).std() < 0.2 * picture.std()
    torch.testing.assert_close(shown(7, 0.5), (picture * 64).floor() / 64)  # six bits
    torch.testing.assert_close(shown(8, 0.5), torch.where(picture >= 0.5, 1 - picture, picture))
    torch.testing.assert_close(shown(12, 0.5)[:, :, 2:], picture[:, :, :-2])  # .3 x .5 x 12 is 1.8 pixels
    torch.testing.assert_close(shown(13, 0.5, -1)[:, :-2], picture[:, 2:])
    assert all(not torch.equal(shown(op, 1.0), shown(op, 1.0, -1)) for op in (9, 10, 11, 12, 13))
    assert all(shown(op, level).min() >= 0 for op in range(14) for level in (0.1, 1.0))


def test_half_of_the_randaugment_operations_are_left_out():
    n = 400
    keys = np.array([image_key(f"train/{row}") for row in range(n)], np.uint64)
    canvas = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1)).expand(n, 3, 8, 8) * 0.7 + 0.1
    view = View("strong0", Recipe("augmented", randaugment=1), 0)
    plain = make_view(canvas, View("strong0", Recipe("plain", shift=1e-9), 0), keys, 0)
    changed = (make_view(canvas, view, keys, 0) - plain).abs().flatten(1).amax(dim=1) > 1e-4
    assert 0.38 < changed.float().mean() < 0.52  # half, less one in fourteen that changes nothing


def test_strong_views_of_the_families_are_harder_than_weak_ones_but_not_noise():
    """Mean change of a real picture: weak below strong, strong below a picture of another image."""
    images = torch.from_numpy(render(9, np.arange(64), np.arange(64) % 40, STYLES["mild"])).permute(0, 3, 1, 2) / 255
    keys = np.array([image_key(f"train/{row}") for row in range(64)], np.uint64)
    for family in ("fixmatch", "finessl"):
        _, weak, strong = parse_views(f"center,{family}")
        colour = [
            make_view(images, view, keys, 0).mean(dim=(2, 3)) - images.mean(dim=(2, 3)) for view in (weak, strong)
        ]
        assert colour[0].abs().mean() < colour[1].abs().mean() < 0.2
