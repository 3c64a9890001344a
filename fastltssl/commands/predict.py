"""`fastltssl predict`: a trained run on new images."""

import csv
import json
from collections import Counter
from pathlib import Path

import click

from fastltssl.commands.common import (
    PATH,
    WORKERS,
    as_json,
    example,
    note_last_step,
    on_device,
    quoted,
    usable_device,
    with_trust,
)


@click.command(epilog=example("predict runs/RUN photos --out predictions.csv"))
@click.argument("run", type=PATH)
@click.argument("images", type=click.Path(exists=True, path_type=Path))
@click.option("--out", default=Path("predictions.csv"), show_default=True, type=PATH, help="One line an image.")
@click.option("--seed", type=int, help="Which seed of the run classifies (default: its first).")
@click.option("--cache", "cache_name", help="Cache the run was trained from, where it has moved.")
@click.option("--pretrained", help="Checkpoint of the encoder, where it is not found by its name.")
@click.option("--probabilities", is_flag=True, help="A column for every class.")
@click.option("--skip-broken", is_flag=True, help="Leave out images that cannot be decoded, and count them.")
@click.option("--workers", default=2, show_default=True, type=WORKERS, help="Threads that decode ahead.")
@on_device
@with_trust
@as_json
def predict(
    run: Path, images: Path, out: Path, seed: int | None, cache_name: str | None, pretrained: str | None,
    probabilities: bool, skip_broken: bool, workers: int, device: str, threads: int | None, is_json: bool,
) -> None:  # fmt: skip
    """Classify new images with a trained run: labels, probabilities, a CSV.

    IMAGES is a file, or a folder with images at any depth. The encoder is the one the run's cache was made with.
    """
    from fastltssl.encoder.extract import orientation_notes
    from fastltssl.encoder.reopen import exif_of
    from fastltssl.images.folder import open_images
    from fastltssl.machine import replacing
    from fastltssl.runs.finished import open_own_cache, read_config
    from fastltssl.runs.trained import encoder_of, load_run, predicting
    from fastltssl.show.terminal import follow, grid, show

    config = read_config(run)
    cache = open_own_cache(run, config, cache_name)
    source = open_images(images, exif_of(cache))
    note_last_step(config)
    trained = load_run(run, cache, seed)
    encoder = encoder_of(trained, pretrained, usable_device(device, threads))
    work = predicting(trained, source, encoder, workers=workers, skip_broken=skip_broken)
    predictions = follow(work, f"predict {config.method}")
    for note in (*source.notes, *orientation_notes(source)):
        show(note)
    confidence, label = predictions.probs.max(dim=-1)
    names = [trained.cache.classes[k] for k in label.tolist()]
    rows = list(zip(predictions.ids, names, confidence.tolist(), strict=True))
    with replacing(out) as part, part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "confidence", *(trained.cache.classes if probabilities else ())])
        for (image, name, sure), probs in zip(rows, predictions.probs.tolist(), strict=True):
            writer.writerow([image, name, f"{sure:.4f}", *((f"{p:.4f}" for p in probs) if probabilities else ())])
    first = [[image, name, f"{100 * sure:.1f}"] for image, name, sure in rows[:10]]
    show(grid(["image", "label", "confidence %"], first, f"{len(rows):,} images, {config.method}"))
    most = ", ".join(f"{name} {count:,}" for name, count in Counter(names).most_common(8))
    show(f"most often: {most}")
    if broken := predictions.broken:
        show(f"left out {len(broken)} that cannot be decoded: {', '.join(broken[:5])}")
    show(f"wrote {out}\nnext: fastltssl export {quoted(run)}")
    if is_json:
        click.echo(json.dumps({"images": len(rows), "broken": list(predictions.broken), "out": str(out)}))
