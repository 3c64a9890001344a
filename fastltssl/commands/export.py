"""`fastltssl export`: a trained run as files that need no fastltssl."""

import json
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import PATH, as_json, example, note_last_step, output_folder, quoted, with_trust


@click.command(epilog=example("export runs/RUN --out model"))
@click.argument("run", type=PATH)
@click.option("--out", type=PATH, help="Folder to write (default: export-RUN).")
@click.option("--seed", type=int, help="Which seed of the run is exported (default: its first).")
@click.option("--cache", "cache_name", help="Cache the run was trained from, where it has moved.")
@click.option("--pretrained", help="Checkpoint of the encoder, where it is not found by its name.")
@click.option("--with-encoder/--no-encoder", default=None, help="Pixels or features in (default: features, but pixels "
              "where the run trained in the encoder, or its head reads taps).")  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Write into a folder that is not empty.")
@with_trust
@as_json
def export(
    run: Path, out: Path | None, seed: int | None, cache_name: str | None, pretrained: str | None,
    with_encoder: bool | None, overwrite: bool, is_json: bool,
) -> None:  # fmt: skip
    """A trained run as safetensors, a program for torch alone, and an example that calls it.

    The program (model.pt2, float32, batches of any size) is compared with the run before it is kept.
    """
    from fastltssl.runs.export import needs_encoder, write_export
    from fastltssl.runs.finished import open_own_cache, read_config, read_record
    from fastltssl.runs.trained import encoder_of, load_run
    from fastltssl.show.terminal import grid, pairs_table, show

    config = read_config(run)
    note_last_step(config)
    trained = load_run(run, open_own_cache(run, config, cache_name), seed)
    is_whole = needs_encoder(trained) if with_encoder is None else with_encoder
    encoder = encoder_of(trained, pretrained, "cpu") if is_whole else None
    folder = output_folder(out or Path(f"export-{run.resolve().name}"), overwrite)
    exported = write_export(folder, trained, encoder, read_record(run))
    show(grid(["file", "KiB"], [[name, f"{size / 1024:,.1f}"] for name, size in exported.sizes.items()]))
    show(pairs_table(_summary(exported), f"{exported.described['method']}, seed {trained.seed}"))
    show(f"wrote {folder}\nnext: python {quoted(folder / 'example.py')} {exported.reads}...")
    if is_json:
        counts = {"tensors": exported.tensors, "parameters": exported.parameters, "bytes": exported.sizes}
        click.echo(json.dumps({"out": str(folder), "model": exported.described} | counts))


def _summary(exported: Any) -> dict[str, str]:
    """What the program takes and returns, its size, and how far its scores are from those of the run."""
    takes, made = exported.described["input"], exported.described["encoder"]
    deviation = f"{exported.described['deviation']:.1e} of the largest score, from the run's own in float32"
    is_other = made is not None and made["precision"] != "fp32"
    return {
        "takes": f"{takes['dtype']}, {' x '.join(map(str, takes['shape']))}: {takes['name']}",
        "gives": exported.described["output"],
        "head.safetensors": f"{exported.tensors} tensors, {exported.parameters:,} numbers",
        "deviation": deviation + (f"; the cache was made in {made['precision']}" if is_other else ""),
    }
