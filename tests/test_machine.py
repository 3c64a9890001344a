"""Files that are written whole or not at all, sizes in words, and the memory that is free."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastltssl.errors import UsageFault, WriteError, byte_size
from fastltssl.machine import available_memory, cpu_threads, make_folder, replacing, usable_device, write_file


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


GIB = 2**30
V2 = "30 23 0:26 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime shared:7 - cgroup cgroup rw,memory"


def system(folder, files):
    """A tree of files as under /proc and /sys, on a machine with 8 GiB available."""
    files = {"proc/meminfo": f"MemTotal: {16 * 2**20} kB\nMemAvailable: {8 * 2**20} kB\n"} | files
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def group(limit, used, file_cache=0):
    """The files of a group of version 2."""
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 1\ninactive_file {file_cache}\nactive_file 7\n",
    }


def old_group(limit, used, file_cache=0):
    """The files of a group of version 1."""
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": f"inactive_file 0\ntotal_inactive_file {file_cache}\n",
    }


def groups(**folders):
    return {f"sys/fs/cgroup/{place}/{name}": text for place, files in folders.items() for name, text in files.items()}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        ({"proc/meminfo": "MemTotal: 1 kB\n"}, 2**62),
        # version 2: the group itself, one above it, file cache that is free, a limit of which nothing is left
        ({"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2}
         | groups(**{"a": group("max", GIB), "a/b": group(3 * GIB, GIB)}), 2 * GIB),
        ({"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": V2}
         | groups(**{"a": group(2 * GIB, GIB, GIB // 2), "a/b": group("max", 0)}), 3 * GIB // 2),
        ({"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2}
         | groups(**{"a": group("max", GIB) | {"memory.high": f"{4 * GIB}\n"}}), 3 * GIB),
        ({"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": V2} | groups(**{"a": group(GIB, 2 * GIB)}), 0),
        # a container sees its own group as the top, whatever path it reads
        ({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": V2} | groups(**{".": group(2 * GIB, GIB)}), GIB),
        ({"proc/self/cgroup": "0::/../../x\n", "proc/self/mountinfo": V2} | groups(**{".": group(2 * GIB, GIB)}), GIB),
        # version 1, beside a version 2 that counts no memory
        ({"proc/self/cgroup": "4:cpu:/\n3:memory:/job/step\n0::/\n",
          "proc/self/mountinfo": f"{V2}/unified\n{V1.format(root='/')}"}
         | groups(**{"memory": old_group(2**63 - 4096, GIB), "memory/job": old_group(2 * GIB, GIB, GIB // 4),
                     "memory/job/step": old_group(2**63 - 4096, 0)}), 5 * GIB // 4),
        ({"proc/self/cgroup": "3:hugetlb,memory:/docker/1\n", "proc/self/mountinfo": V1.format(root="/docker/1")}
         | groups(**{"memory": old_group(5 * GIB, GIB)}), 4 * GIB),
        # files that say something else limit nothing
        ({"proc/self/cgroup": "0::/a\nx\n\n", "proc/self/mountinfo": f"x\n - \n{V2}"}
         | groups(**{"a": group("much", "x")}), 8 * GIB),
    ],
)  # fmt: skip
def test_every_limit_of_memory_counts(tmp_path, files, expected):
    assert available_memory(system(tmp_path, files)) == expected


@pytest.mark.parametrize(("limit", "name"), [("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")])
def test_a_limit_of_the_process_counts(limit, name):
    code = f"""
import resource
from fastltssl.machine import _fields, available_memory
from pathlib import Path
before = available_memory()
resource.setrlimit(resource.{limit}, (2**30, 2**30))
free = available_memory()
used = 1024 * _fields(Path("/proc/self/status"))["{name}"]
assert before > 2**30 and abs(free - (2**30 - used)) < 2**24, (before, free, used)
held = bytearray(free - 2**25)  # so much can be taken, and no more
assert available_memory() < 2**26
try:
    bytearray(2**26)
except MemoryError:
    print("full")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "full\n", ended.stderr


@pytest.mark.parametrize("name", ["meta", "cpu:1", "cuda:", "cuda:-1", "cuda:²", "xla", "", "cpu\n", "tpu", "cuda:999"])
def test_a_device_that_cannot_be_used_is_told_with_those_that_can(name):
    with pytest.raises(UsageFault, match=r"Accepted: cpu, cuda, cuda:N, auto|cannot be used here .*; try cpu"):
        usable_device(name)
    assert usable_device("cpu") == "cpu"


@pytest.mark.parametrize("count", [0, -1, 100_000, 10**30])
def test_threads_beyond_what_a_machine_can_start_are_refused(count):
    with pytest.raises(UsageFault, match=rf"--threads {count} is not from 1 to [0-9]+"), cpu_threads(count):
        pass
    with cpu_threads(3):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1
