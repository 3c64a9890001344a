"""Class names to prompts: named sets of templates, each a format string with one {} for the class name."""

import difflib
from collections.abc import Sequence

TEMPLATES: dict[str, tuple[str, ...]] = {
    "simple": ("a photo of a {}.",),
    "world": ("a photo of a {}", "a picture of a {}", "a sketch of a {}", "{}"),  # words the tiny tokenizer knows
}
OPEN_CLIP = {"openai80": "OPENAI_IMAGENET_TEMPLATES", "openai7": "SIMPLE_IMAGENET_TEMPLATES"}


class PromptError(ValueError):
    """A set of templates that is not one."""


def templates(name: str) -> tuple[str, ...]:
    """The format strings of a named set; the first prompt of the "openai" sets costs the import of open_clip."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name in OPEN_CLIP:
        from open_clip import zero_shot_metadata

        return tuple(template("{}") for template in getattr(zero_shot_metadata, OPEN_CLIP[name]))
    known = [*TEMPLATES, *OPEN_CLIP]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise PromptError(f"--templates {name!r} is not a set of templates.{hint} Known: {', '.join(known)}")


def prompts(classes: Sequence[str], name: str) -> list[list[str]]:
    """Every class in every template, [C][T]."""
    patterns = templates(name)
    return [[pattern.format(each) for pattern in patterns] for each in classes]
