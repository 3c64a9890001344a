"""The parts of an image of the embedded world besides its pictogram: random numbers, noise and backgrounds.

Every random number is a hash of (seed, index, place), so that an image never depends on other images.
"""

import numpy as np

TEXTURE_SIDE = 192  # pixels of a tileable background; images are crops of it
GRAIN_SIDE = 256  # pixels of the noise sheet that images take their sensor noise from
COLORS = {
    "red": (205, 45, 40), "orange": (240, 140, 35), "yellow": (240, 215, 60), "green": (55, 150, 60),
    "blue": (45, 85, 200), "purple": (135, 60, 170), "pink": (240, 140, 180), "brown": (120, 75, 40),
    "black": (30, 30, 35), "white": (240, 240, 240),
}  # fmt: skip
BACKGROUNDS = (
    "grass", "sand", "water", "sky", "wood", "brick",
    "tiles", "night", "paper", "leaves", "fabric", "marble",
)  # fmt: skip


def scrambled(x: np.ndarray) -> np.ndarray:
    """A hash of each 64-bit number (the finaliser of splitmix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def uniforms(seed: int, index: np.ndarray, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) of 24 bits, float32 [N, count]: a hash of (seed, index, place)."""
    with np.errstate(over="ignore"):
        stream = scrambled(np.array([seed], np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x632BE59BD9B4E019))
        key = scrambled(stream + np.asarray(index, np.uint64) * np.uint64(0xD1342543DE82EF95))
        places = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        bits = scrambled(key[:, None] + places) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2**-24)


def grain() -> np.ndarray:
    """A sheet of noise with mean 0 and variance 1, float32 [256, 256, 3]: sums of four random bytes, near normal."""
    per_row = GRAIN_SIDE * 3
    with np.errstate(over="ignore"):
        rows = scrambled(np.arange(GRAIN_SIDE, dtype=np.uint64) + np.uint64(99))
        words = np.arange(1, per_row // 2 + 1, dtype=np.uint64) * np.uint64(0xA0761D6478BD642F)
        bits = scrambled(rows[:, None] + words)
    total = bits.view(np.uint8).reshape(GRAIN_SIDE, per_row // 2, 2, 4).astype(np.int16).sum(axis=-1)
    return (total.reshape(GRAIN_SIDE, GRAIN_SIDE, 3).astype(np.float32) - 510) * np.float32(1 / 147.8)


def clouds(seed: int, cells: int) -> np.ndarray:
    """Smooth tileable noise in [0, 1), [TEXTURE_SIDE, TEXTURE_SIDE]: `cells` random heights a side, interpolated."""
    height = uniforms(seed, np.arange(cells), cells)
    place = np.arange(TEXTURE_SIDE) / TEXTURE_SIDE * cells
    here, weight = place.astype(int) % cells, place - np.floor(place)
    after, weight = (here + 1) % cells, weight * weight * (3 - 2 * weight)
    rows = height[here] * (1 - weight)[:, None] + height[after] * weight[:, None]
    return rows[:, here] * (1 - weight)[None] + rows[:, after] * weight[None]


def between(share: np.ndarray, start: tuple[int, int, int], stop: tuple[int, int, int]) -> np.ndarray:
    """The colour that lies a share of the way from start to stop, for every pixel."""
    return np.asarray(start, float) * (1 - share[..., None]) + np.asarray(stop, float) * share[..., None]


def textures() -> np.ndarray:
    """The backgrounds in the order of BACKGROUNDS, uint8 [12, TEXTURE_SIDE, TEXTURE_SIDE, 3]."""
    y, x = np.mgrid[0:TEXTURE_SIDE, 0:TEXTURE_SIDE]
    waves = np.abs(((y + 6 * clouds(5, 12)) % 16) / 8 - 1)
    rings = np.abs(((x + 10 * clouds(9, 8)) % 12) / 6 - 1)
    mortar = ((y % 12) < 2) | (((x + 12 * ((y // 12) % 2)) % 24) < 2)
    stars = clouds(13, 96) > 0.965
    squares = ((y % 12) == 0) | ((x % 12) == 0)
    weave = (((x // 3) + (y // 3)) % 2) * 0.4 + 0.6 * (((x // 16) % 2) + ((y // 16) % 2)) / 2
    veins = np.abs(((x + y + 30 * clouds(17, 12)) % 48) / 24 - 1) ** 3
    drawn = {
        "grass": between(0.6 * clouds(1, 64) + 0.4 * np.roll(clouds(2, 96), 3, 0), (60, 120, 40), (120, 190, 80)),
        "sand": between(0.5 * clouds(3, 96) + 0.5 * clouds(4, 12), (205, 175, 120), (240, 220, 170)),
        "water": between(waves * 0.7 + 0.3 * clouds(6, 24), (40, 100, 160), (120, 180, 220)),
        "sky": between(np.clip(1.8 * clouds(7, 8) * clouds(8, 16), 0, 1), (120, 180, 235), (245, 248, 252)),
        "wood": between(0.7 * rings + 0.3 * clouds(10, 48), (120, 80, 45), (180, 130, 80)),
        "brick": np.where(mortar[..., None], (200, 190, 180), between(clouds(11, 32), (150, 70, 55), (190, 100, 80))),
        "tiles": between((((x // 12) + (y // 12)) % 2) * 0.8 + 0.2 * clouds(12, 48), (90, 95, 110), (200, 205, 215)),
        "night": np.where(stars[..., None], (250, 245, 200), between(clouds(14, 8), (15, 15, 45), (50, 40, 90))),
        "paper": np.where(
            squares[..., None], (150, 180, 220), between(clouds(15, 32), (235, 232, 222), (252, 250, 245))
        ),
        "leaves": between(clouds(16, 24), (35, 70, 30), (150, 120, 40)),
        "fabric": between(weave, (130, 30, 50), (235, 200, 190)),
        "marble": between(veins, (235, 235, 238), (120, 120, 130)),
    }
    return np.stack([np.clip(drawn[name], 0, 255).astype(np.uint8) for name in BACKGROUNDS])
