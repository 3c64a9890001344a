"""Files that are written whole or not at all, sizes in words, and the memory that is free."""

import os
import resource
import stat
from pathlib import Path

import pytest

from fastltssl.errors import WriteError, byte_size
from fastltssl.machine import make_folder, replacing, write_file


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (12, "12 bytes"), (999, "999 bytes"), (1000, "1.0 KiB"), (3500, "3.4 KiB"), (5 * 2**20, "5.0 MiB"),
     (2**30 - 1, "1.0 GiB"), (2 * 2**30, "2.0 GiB"), (3 * 2**60, "3072.0 PiB")],
)  # fmt: skip
def test_a_size_has_the_unit_that_suits_it(count, text):
    assert byte_size(count) == text


@pytest.fixture
def full_disk():
    """No file may grow beyond 4 KiB while the test runs, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_a_file_that_cannot_be_written_whole_leaves_the_former_one(tmp_path):
    path = tmp_path / "a.csv"
    write_file(path, "before\r\n")
    with pytest.raises(WriteError, match=r"a\.csv cannot be written: File too large\. Choose another place"):
        write_file(path, "x" * 9000)
    assert path.read_bytes() == b"before\r\n"
    assert [*tmp_path.iterdir()] == [path]


def test_what_stops_in_between_leaves_nothing_behind(tmp_path):
    def stopped():
        with replacing(tmp_path / "a.png") as part:
            assert part.suffix == ".png"
            part.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert not [*tmp_path.iterdir()]


def test_links_and_permissions_stay_and_a_device_is_written_itself(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    write_file(target, "before")
    target.chmod(0o640)
    link.symlink_to(target)
    write_file(link, b"after")
    assert link.is_symlink()
    assert target.read_bytes() == b"after"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    write_file(tmp_path / "new", "é\udcff")
    assert (tmp_path / "new").read_text(encoding="utf-8") == "é\\udcff"
    write_file(Path(os.devnull), "told to no one")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.parametrize("name", ["folder", "file/a.csv", "none/a.csv", f"{'n' * 300}.csv"])
def test_a_place_that_cannot_be_written_is_named_in_one_line(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(WriteError) as told:
        write_file(tmp_path / name, "x")
    assert str(told.value).startswith(f"{tmp_path / name} cannot be written: ")
    assert "\n" not in str(told.value)
    with pytest.raises(WriteError, match="cannot be written"):
        make_folder(tmp_path / "file" / "inner")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
