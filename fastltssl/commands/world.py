"""`fastltssl world`: the embedded world and the training of its tiny CLIP."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import PATH, as_json, example, quoted
from fastltssl.errors import did_you_mean
from fastltssl.machine import check_place, replacing


@click.group()
def world() -> None:
    """The embedded world: look at it, or train its tiny CLIP again."""


@world.command("sheet", epilog=example("world sheet --out world.png"))
@click.option("--style", "styles", multiple=True, help="Style to show, may be repeated (default: caption and mild).")
@click.option(
    "--each", "count", default=3, show_default=True, type=click.IntRange(1, 12), help="Images of a class and style."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of the images.")
@click.option("--nameless", is_flag=True, help="Show shapes of the image tower's warm-up (style warm-up) instead.")
@click.option("--out", default="world.jpg", show_default=True, type=PATH,
              help="Picture to write: .jpg, or .png for the exact pixels at four times the size.")  # fmt: skip
def sheet(styles: tuple[str, ...], count: int, seed: int, nameless: bool, out: Path) -> None:
    """Draw a contact sheet: every class by name, in the style of the captions and shifted."""
    from fastltssl.images.world import contact_sheet
    from fastltssl.images.world.painting import drawings
    from fastltssl.images.world.shapes import nameless as nameless_shapes
    from fastltssl.images.world.world import CLASSES
    from fastltssl.show.terminal import show

    if out.suffix.lower() not in (".png", ".jpg"):
        raise click.UsageError(f"--out {out} is no picture; it must end in .png or .jpg")
    check_place(out)
    names = [f"shape {number}" for number in range(len(CLASSES))] if nameless else CLASSES
    drawn = drawings(nameless_shapes(seed, len(CLASSES))) if nameless else None
    pixels = contact_sheet.sheet(names, _styles(styles, nameless), count=count, seed=seed, drawn=drawn)
    with replacing(out) as part:
        contact_sheet.save(pixels, part)
    other = "fastltssl demo" if nameless else "fastltssl world sheet --nameless --out nameless.jpg"
    show(f"wrote {out} ({pixels.shape[1]} x {pixels.shape[0]} pixels)\nnext: {other}")


def _styles(names: tuple[str, ...], nameless: bool) -> dict[str, Any]:
    """The styles to show by name; by default caption and mild, or that of the warm-up for nameless shapes."""
    from fastltssl.images.world.world import STYLES

    known: dict[str, Any] = dict(STYLES)
    if nameless:
        from fastltssl.encoder.pretrain import BROAD

        known["warm-up"] = BROAD
    for name in names:
        if name not in known:
            raise click.UsageError(f"--style {name!r} is unknown.{did_you_mean(name, known)} Known: {', '.join(known)}")
    return {name: known[name] for name in names or (("warm-up",) if nameless else ("caption", "mild"))}


@world.command("train", epilog=example("world train --out tiny2"))
@click.option("--out", required=True, type=PATH, help="Folder to write the model to.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option(
    "--negatives", default="bank", show_default=True,
    help="Candidates of the image loss: bank (a caption of every class) or batch (the ordinary loss: a control).",
)  # fmt: skip
@click.option("--warmed", type=PATH, help="Take the warm-up of the image tower from this folder of an earlier run.")
@click.option("--warmup-steps", type=click.IntRange(1, 10**6), help="Steps on nameless shapes (default 2500).")
@click.option("--caption-steps", type=click.IntRange(1, 10**6), help="Steps on captions (default 100).")
@click.option("--resume", is_flag=True, help="Go on where a killed run stopped.")
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@as_json
def train(out: Path, warmed: Path | None, resume: bool, overwrite: bool, is_json: bool, **given: Any) -> None:
    """Make the weights of the tiny CLIP anew from a seed, on one CPU thread, in a fixed number of steps."""
    from fastltssl.encoder.pretrain import CHECKPOINT, Recipe, pretrain
    from fastltssl.show.terminal import follow, show

    is_finished = (out / "training.json").exists() and not (out / CHECKPOINT).exists()
    if is_finished and not overwrite:
        raise click.UsageError(f"{out} holds a trained model; choose another --out, or pass --overwrite")
    recipe = Recipe(**{name: value for name, value in given.items() if value is not None})
    try:
        record = follow(pretrain(recipe, out, warmed=warmed, resume=resume), "world train")
    except OSError as error:
        raise click.UsageError(f"--out {out} cannot be written: {error}. Choose another --out") from None
    model, cache = quoted(f"local-dir:{out}"), quoted(f"{out.resolve().name}.zarr")
    show(
        f"{record['warm_up_images']:,} images of {recipe.shapes} nameless shapes"
        f"{f' (taken from {warmed})' if warmed else ''}, then {record['caption_pairs']:,} images with captions, "
        f"{record['seconds']:.0f} s\n{record['parameters']:,} parameters, "
        f"{record['bytes'] / 1e6:.1f} MB\nwrote {out}\n"
        f"next: fastltssl extract --model {model} --dataset world --templates world --out {cache}\n"
        f"      fastltssl bias --cache {cache} --n1 25 --gamma-l 10 --seeds 0-4"
    )
    if is_json:
        click.echo(json.dumps(record))
