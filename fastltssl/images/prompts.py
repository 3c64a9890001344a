"""Prompts for class names: named sets of templates, each a format string with one {} for the class name."""

from collections.abc import Sequence

from fastltssl.errors import PromptError, did_you_mean

_PHOTOS = ("", "blurry ", "black and white ", "low contrast ", "high contrast ", "bad ", "good ")
_CIFAR = tuple(
    pattern
    for article in ("a", "the")
    for pattern in (
        *(f"a {kind}photo of {article} {{}}." for kind in _PHOTOS),
        *(f"a photo of {article} {size} {{}}." for size in ("small", "big")),
    )
)
# A set named after a data set holds the prompts that CLIP (arXiv 2103.00020) and CoOp (2109.01134) published for it.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "simple": ("a photo of a {}.",),
    "world": ("a photo of a {}", "a picture of a {}", "a sketch of a {}", "{}"),  # in words that tiny was trained on
    "cifar10": _CIFAR,
    "cifar100": _CIFAR,
    "stl10": ("a photo of a {}.", "a photo of the {}."),
    "svhn": ('a photo of the number: "{}".',),
    "food101": ("a photo of {}, a type of food.",),
    "eurosat": ("a centered satellite photo of {}.",),
    "dtd": ("{} texture.",),
    "flowers102": ("a photo of a {}, a type of flower.",),
    "oxford_pets": ("a photo of a {}, a type of pet.",),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.",),
    "gtsrb": ('a zoomed in photo of a "{}" traffic sign.',),
}
OPEN_CLIP = {"openai80": "OPENAI_IMAGENET_TEMPLATES", "openai7": "SIMPLE_IMAGENET_TEMPLATES"}


def templates(name: str) -> tuple[str, ...]:
    """The format strings of a named set, or of several joined by commas, without repeats. Raises PromptError."""
    return tuple(dict.fromkeys(pattern for part in name.split(",") for pattern in _set(part.strip())))


def _set(name: str) -> tuple[str, ...]:
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name in OPEN_CLIP:
        from open_clip import zero_shot_metadata

        return tuple(template("{}") for template in getattr(zero_shot_metadata, OPEN_CLIP[name]))
    known = [*TEMPLATES, *OPEN_CLIP]
    hint = did_you_mean(name, known)
    raise PromptError(f"--templates {name!r} is not a set of templates.{hint} Known: {', '.join(known)}")


def templates_of(dataset: str) -> str:
    """The default sets for a data set: "simple", and the one of its own name where prompts were published for it."""
    return f"simple,{dataset}" if dataset in TEMPLATES and dataset != "world" else "simple"


def prompts(classes: Sequence[str], template_set: str) -> list[list[str]]:
    """The prompts of every class in every template, [C][T]."""
    patterns = templates(template_set)
    return [[pattern.format(name) for pattern in patterns] for name in classes]
