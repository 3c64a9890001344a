"""The colours and markers of every figure and page: Okabe and Ito's palette, safe for colour-blind eyes."""

CURVES = (  # colour and matplotlib marker of each curve, so that either alone tells curves apart
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
    ("#000000", "X"),
)  # fmt: skip
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK = (color for color, _ in CURVES)
GREY = "#777777"
GROUP_COLORS = (BLUE, YELLOW, PINK)  # head, medium, tail


def rgb(color: str) -> tuple[float, float, float]:
    """Red, green and blue in [0, 1] of "#rrggbb"."""
    red, green, blue = (int(color[start : start + 2], 16) / 255 for start in (1, 3, 5))
    return red, green, blue
