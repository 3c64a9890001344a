"""One experiment from its configuration to the folder that records it; `train` runs one from Python."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastltssl.cache.catalogue import Cache


def train(
    method: str,
    cache: "Cache | str | Path",
    *,
    out: str | Path | None = None,
    device: str = "cpu",
    pretrained: str | None = None,
    dataset: str | None = None,
    root: str | Path | None = None,
    workers: int = 2,
    threads: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """`fastltssl train` from Python: every seed of an experiment, written as a run folder; returns its record.

    `options` are those of `Config.of`: the switches of a protocol (n1=150, m1=300, gamma_l=20), seeds (such as
    range(5)), steps, lr, batch, settings={"tau": 0.5}, live="lora:4" and so on. `record["bacc"]["mean"]` is a mean over
    the seeds in percent, `record["run"]` the folder, new under runs/ unless `out` names one. `pretrained`, `dataset`
    and `root` say where encoder and images are, for live runs whose own have moved. `threads` of the CPU are used;
    None: one from a cache, as its products are small, and all through an encoder.

    Raises ConfigError or SwitchError for an option that no run can have, UnknownMethod and UnknownKnob, CacheError,
    SplitError where the cache holds too few rows, and RunError where training fails or `out` is not empty.
    """
    from fastltssl.cache.catalogue import Cache, open_cache  # all of them here: a look at a config needs no encoder
    from fastltssl.machine import cpu_threads
    from fastltssl.progress import drain
    from fastltssl.runs import experiment
    from fastltssl.runs.config import Config
    from fastltssl.runs.folder import claimed, new_folder
    from fastltssl.runs.live import experiment as live
    from fastltssl.training.rows import resident

    opened = cache if isinstance(cache, Cache) else open_cache(cache)
    config = Config.of(options | {"method": method, "cache": str(opened.path)})
    rows, origin = resident(opened, device), None if root is None else Path(root)
    with claimed(Path(out) if out is not None else new_folder(config)) as folder:
        if config.live is None:
            with cpu_threads(threads or 1):
                return drain(experiment.training(config, opened, rows, folder))
        images = live.open_images(opened, device, pretrained, dataset, origin, workers=workers)
        with cpu_threads(threads):
            return drain(live.training(config, opened, rows, images, folder))
