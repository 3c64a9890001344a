"""`fastltssl cache`: the feature caches on this machine."""

import json
import time
from pathlib import Path
from typing import Any

import click

from fastltssl.commands.common import (
    PATH,
    WORKERS,
    as_json,
    counted,
    example,
    next_of,
    on_device,
    quoted,
    usable_device,
)

SHOWN = 20  # damages that are listed


@click.group()
def cache() -> None:
    """List, inspect, check, import and remove feature caches."""


@cache.command("ls")
@as_json
def cache_ls(is_json: bool) -> None:
    """List the caches in the cache folder (./cache, or FASTLTSSL_CACHE)."""
    from fastltssl.cache.catalogue import cache_folder, list_caches
    from fastltssl.show.terminal import grid, show

    folder = cache_folder()
    caches = list_caches(folder)
    if caches:
        show(grid(list(caches[0]), [list(cache.values()) for cache in caches]))
    following = f"fastltssl cache info {quoted(caches[0]['name'])}" if caches else "fastltssl extract --help"
    show(f"{counted(len(caches), 'cache')} in {folder}\nnext: {following}")
    if is_json:
        click.echo(json.dumps(caches, default=str))


@cache.command("info")
@click.argument("name")
@as_json
def cache_info(name: str, is_json: bool) -> None:
    """Show everything that is in a cache's fingerprint, shapes, sizes and completeness."""
    from fastltssl.cache.catalogue import find_cache, info
    from fastltssl.show.terminal import pairs_table, show

    contents = info(name)
    show(pairs_table(_flat(contents), name))
    if contents.get("is_complete"):
        show(next_of(find_cache(name)))
    if is_json:
        click.echo(json.dumps(contents, default=str))


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary as one of texts, with keys such as provenance.model."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
    return flat


@cache.command("verify")
@click.argument("name")
@as_json
def cache_verify(name: str, is_json: bool) -> None:
    """Check every file of a cache against its manifest. Exit code 1 where anything is damaged."""
    from fastltssl.cache.catalogue import find_cache, verify
    from fastltssl.cache.manifest import way_on
    from fastltssl.show.terminal import grid, show

    began = time.perf_counter()
    damages = verify(name)
    if damages:
        rows = [["" if cell is None else cell for cell in damage] for damage in damages[:SHOWN]]
        show(grid(list(damages[0]._fields), rows))
        if (left := len(damages) - SHOWN) > 0:
            show(f"... and {left} more; --json names all of them")
    state = f"{len(damages)} damaged" if damages else "every file is as the manifest says"
    following = f"next: {way_on(find_cache(name))}" if damages else next_of(find_cache(name))
    show(f"{name}: {state} ({time.perf_counter() - began:.1f} s)\n{following}")
    if is_json:
        click.echo(json.dumps({"damages": [damage._asdict() for damage in damages]}))
    if damages:
        raise click.exceptions.Exit(1)


@cache.command("rm")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def cache_rm(name: str, yes: bool) -> None:
    """Remove a cache; nothing else is ever removed."""
    from fastltssl.cache.catalogue import find_cache, remove
    from fastltssl.show.terminal import show

    path = find_cache(name)
    what = f"the link {path}; the cache it led to stays: {path.resolve()}" if path.is_symlink() else str(path)
    if yes or click.confirm(f"remove {path}?", default=False):
        remove(path)
        show(f"removed {what}\nnext: fastltssl cache ls")


@cache.command("add-views", epilog=example("cache add-views cifar100_ViT-B-16 --views center,weak:8,strong:8"))
@click.argument("name")
@click.option("--views", required=True, help="All views the cache is to hold: those it has, and more.")
@click.option("--dataset", help="Where its images are (default: as recorded).")
@click.option("--root", type=PATH, help="Where torchvision sets are kept.")
@click.option("--limit", type=click.IntRange(1), help="As the cache was made with.")
@click.option("--pretrained", help="Path of the checkpoint, where it was made from a file.")
@click.option("--workers", default=2, show_default=True, type=WORKERS, help="Decoding threads.")
@on_device
def cache_add_views(
    name: str, views: str, dataset: str | None, root: Path | None, limit: int | None, pretrained: str | None,
    workers: int, device: str, threads: int | None,
) -> None:  # fmt: skip
    """Give an extracted cache more views; those it has are not encoded again."""
    from fastltssl.cache.catalogue import open_cache
    from fastltssl.encoder.add_views import add_views, find_recovered
    from fastltssl.encoder.clip import load_encoder
    from fastltssl.encoder.reopen import exif_of, made_with
    from fastltssl.images import open_source
    from fastltssl.images.views import parse_views
    from fastltssl.show.terminal import follow, show

    path, parsed = find_recovered(name), parse_views(views)
    cache = open_cache(path)
    if "preprocessing" not in cache.attributes["provenance"]:
        raise click.UsageError(f"{path} was imported; only an extracted cache can be given more views")
    made = made_with(cache)
    if made["pretrained"] == "file" and pretrained is None:
        raise click.UsageError(f"{path} was made from a checkpoint file: give it with --pretrained PATH")
    source = open_source(dataset or made["dataset"], root, limit, exif_of(cache))
    encoder = load_encoder(
        made["model"], pretrained or made["pretrained"], usable_device(device, threads), made["precision"],
        trim=made["is_trimmed"], taps=bool(cache.groups["train"].taps), compiled=made.get("is_compiled", False),
        statistics=(tuple(made["preprocessing"]["mean"]), tuple(made["preprocessing"]["std"])),
    )  # fmt: skip
    done = follow(add_views(path, source, encoder, parsed, workers=workers), "add-views")
    show(f"{done.views:,} views in {done.seconds:.1f} s ({done.views_per_s:,.0f} views/s)")
    show(f"wrote {path}\n{next_of(path)}")


@cache.command(
    "import",
    epilog=example("cache import feats.npz --features image --labels label --text text"),
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--features", required=True, help="Key of the image features [N, D] in FILE.")
@click.option("--labels", required=True, help="Key of the labels [N].")
@click.option("--text", help="Key of the text features, [C, E] or [C, T, E].")
@click.option("--text-layout", type=click.Choice(["ctd", "tcd"]), default="ctd", show_default=True)
@click.option("--classes", help="Key of the class names.")
@click.option("--test-features", help="Key of the test features.")
@click.option("--test-labels", help="Key of the test labels.")
@click.option("--projection", help="Key of the projection [D, E], with --space pre.")
@click.option("--space", type=click.Choice(["embedding", "pre"]), default="embedding", show_default=True)
@click.option("--logit-scale", default=100.0, show_default=True, help="The multiplier itself.")
@click.option("--emulate", help="Noise views, such as weak:8:0.2,strong:8:0.5:0.1.")
@click.option("--out", type=PATH, help="Cache to write (default: cache folder / FILE.zarr).")
@click.option("--overwrite", is_flag=True, help="Replace a cache that is there.")
def cache_import(file: Path, out: Path | None, overwrite: bool, **keys: Any) -> None:
    """Make a cache from features computed elsewhere (.npz, .npy, .safetensors, .parquet; never a pickle)."""
    from fastltssl.cache.catalogue import cache_folder
    from fastltssl.cache.imports import import_file
    from fastltssl.show.terminal import show

    path = out or cache_folder() / f"{file.stem}.zarr"
    summary = import_file(file, path, overwrite=overwrite, **keys)
    show(f"{summary}\nwrote {path}\n{next_of(path)}")
