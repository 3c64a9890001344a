"""Shape checks on every function of the package, one thread, and the fixtures several files share.

The package is imported inside functions here, as only what is imported after the hook is checked.
"""

import os
import tempfile

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("fastltssl", "checker.checked")

torch.set_num_threads(1)
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="fastltssl-state-")  # so that no test writes into a home


def pytest_collection_modifyitems(config, items):
    """Tests marked gpu need a GPU; those marked slow are asked for with -m slow."""
    asked = config.getoption("-m")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))
        if "slow" in item.keywords and "slow" not in asked:
            item.add_marker(pytest.mark.skip(reason="takes minutes: python -m pytest -m slow"))


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A small cache of the embedded world: 160 training and 12 test images a class, five views."""
    from fastltssl.cache.catalogue import open_cache
    from fastltssl.encoder import extract
    from fastltssl.encoder.clip import load_encoder
    from fastltssl.images import open_source
    from fastltssl.images.views import parse_views
    from fastltssl.progress import drain

    path = tmp_path_factory.mktemp("caches") / "world.zarr"
    source, encoder = open_source("world:mild:160:12"), load_encoder("tiny", None)
    work = extract.extract(source, encoder, parse_views("center,weak:1,strong:2"), path, templates="world")
    drain(work)
    return open_cache(path)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of imported toy features, see toy_cache."""
    import toy_cache

    return toy_cache.write(tmp_path_factory.mktemp("caches") / "toy.zarr")


@pytest.fixture(scope="module")
def rows(cache):
    """The rows of `cache` on the CPU."""
    from fastltssl.training.rows import resident

    return resident(cache)
