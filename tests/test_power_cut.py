"""The power fails while results are made: what stands under its name is whole, and the next run makes the same bytes.

The data lie on an ext4 file system in a file. When the power fails, what the kernel has not yet written to that file is
lost: the process is killed, the file copied as it then is, and the copy mounted in its place, which replays the journal
as a machine does when it starts again. Needs root and loop devices; slow, and part of `make test-durability`.
"""

import os
import shutil
import subprocess
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from test_kill import LONG, STEPS, Job, Reports

from whisper_sae import cache

pytestmark = pytest.mark.slow


class Disk:
    """A small disk whose power can be cut."""

    def __init__(self, folder, megabytes: int):
        self.image, self.copy, self.at = folder / "disk.img", folder / "cut.img", folder / "disk"
        self.at.mkdir()
        with open(self.image, "wb") as file:
            file.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-F", self.image)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", "loop", self.image, self.at)

    def unmount(self) -> None:
        run("umount", self.at)

    def cut(self) -> None:
        """What the kernel still holds in memory is gone."""
        shutil.copyfile(self.image, self.copy)
        self.unmount()
        os.replace(self.copy, self.image)
        self.mount()


def kill_all(process: psutil.Process) -> None:
    """Kill a process and all that it has started, and wait until they are gone."""
    with suppress(psutil.NoSuchProcess):
        several = [process, *process.children(recursive=True)]
        for one in several:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(several[1:], timeout=20)


def run(*command) -> None:
    subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path):
    if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("a file system in a file is mounted by root alone")
    try:
        made = Disk(tmp_path, 400)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no file system can be mounted here: {error.stderr.strip()}")
    yield made
    made.unmount()


@pytest.mark.parametrize(("what", "cuts"), [("activations", 6), ("dictionary", 6), ("index", 4)])
def test_after_a_power_cut_the_next_run_makes_the_same_bytes(
    disk, what, cuts, small_whisper, corpus, run_for, monkeypatch
):
    job = Job(what, disk.at, run_for(small_whisper, corpus(**LONG[what]), tokens=256 * STEPS), monkeypatch)
    run("sync", "-f", disk.at)  # what the test itself has copied there
    rng, hits = np.random.default_rng(2), 0
    for _attempt in range(4 * cuts):
        if hits == cuts:
            break
        child = job.start()
        time.sleep(rng.uniform(0.1, 1.3) * job.seconds)
        child.kill()
        child.wait()
        disk.cut()
        job.check_names()
        hits += job.at_work() or job.is_made()
        if job.is_made():
            job.check_same(job.finish())
            job.fresh()
            run("sync", "-f", disk.at)
    assert hits == cuts
    job.check_same(job.finish())
    disk.cut()  # the moment that it is finished, whatever chance has hit before
    job.check_names()
    job.check_same(cache.need(job.recipe))


def test_after_a_power_cut_the_next_run_makes_the_same_pages(disk, monkeypatch):
    job = Reports(disk.at, monkeypatch)
    run("sync", "-f", disk.at)
    rng, hits = np.random.default_rng(2), 0
    for _attempt in range(16):
        if hits == 4:
            break
        child = job.start()
        time.sleep(rng.uniform(0.1, 1.1) * job.seconds)
        kill_all(psutil.Process(child.pid))  # a power cut spares no kernel
        child.wait()
        disk.cut()
        job.check_names()
        hits += job.at_work() or job.is_made()
        if job.is_made():
            job.fresh()
    assert hits == 4
    job.check_same(job.finish())


def test_a_cut_takes_what_was_not_flushed(disk):
    """The disk of this test is one: without this the others would show nothing."""
    (disk.at / "old").write_text("old")
    os.sync()
    (disk.at / "new").write_text("new")
    disk.cut()
    assert (disk.at / "old").read_text() == "old"
    assert not (disk.at / "new").exists() or (disk.at / "new").read_text() == ""
