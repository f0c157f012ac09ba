"""What a cluster makes is what one process makes, byte for byte, even if a worker dies over it."""

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from whisper_sae import cache, code_hash, parallel, profiles, shards
from whisper_sae.activations import store
from whisper_sae.experiments import pipeline, sae_comparison, sanity_checks
from whisper_sae.model import whisper_model

DEMO = profiles.DEMO / "whisper"


@pytest.fixture(scope="module")
def client():
    """Two worker processes of one thread each; their ports are open to this machine alone.

    They are forked from one process that has imported everything, which takes longer than all else here.
    """
    import dask
    from distributed import Client, LocalCluster, utils

    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        pytest.MonkeyPatch.context() as env,
    ):
        env.setenv("OMP_NUM_THREADS", "1")  # read once, by the process from which they are forked
        utils.get_mp_context().set_forkserver_preload(["distributed", "whisper_sae.experiments.sae_comparison"])
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1", silence_logs="CRITICAL"
            ) as here,
            Client(here, set_as_default=False) as found,
        ):
            yield found


@pytest.fixture
def alike():
    """As many threads here as a worker has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """`root(name)` makes another data folder the one that counts."""

    def choose(name: str) -> Path:
        monkeypatch.setenv("WHISPER_SAE_DATA", str(tmp_path / name))
        return tmp_path / name

    return choose


def check_same(step: cache.Step, right: cache.Step) -> None:
    """Byte for byte, and nothing else lies there or beside it."""
    assert step.path != right.path
    step.verify()
    assert step.manifest["files"] == right.manifest["files"]
    assert step.facts == right.facts
    files = {path.relative_to(step.path).as_posix() for path in step.path.rglob("*") if path.is_file()}
    assert files == {*step.manifest["files"], "manifest.json"}
    assert not list(step.path.parent.glob(".*.parts")) and not list(step.path.parent.glob(".*.work"))
    assert not list(cache.root().glob(".seen-*"))


# ------------------------------------------------------------------------------------ the same is made


def stumble(at: int, why: str) -> None:
    """In a worker: the model fails from call number `at` on."""
    from whisper_sae.model import whisper_model

    record, calls = whisper_model.record, []

    def stumbling(*args):
        calls.append(1)
        if len(calls) >= at:
            raise whisper_model.BadModel(why)
        return record(*args)

    stumbling.plain = record
    whisper_model.record = stumbling


def mend() -> None:
    """In a worker: the model is as it was."""
    from whisper_sae.model import whisper_model

    whisper_model.record = whisper_model.record.plain


def test_an_error_there_is_one_line_here_and_the_rest_is_made_here(
    client, small_whisper, corpus, run_for, root, alike
):  # fmt: skip
    run = run_for(small_whisper, corpus(voices=3, clips=12), windows="packed", sites=("encoder.*",))
    root("alone")
    cache.make(pipeline.clips(run, 0))
    right = cache.make(pipeline.activations(run, 0))
    folder = root("together")
    cache.make(pipeline.clips(run, 0))
    client.run(stumble, 4, "this model is tired")
    with parallel.using(client), pytest.raises(whisper_model.BadModel) as said:
        cache.make(pipeline.activations(run, 0))
    client.run(mend)
    assert str(said.value) == "this model is tired"
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("steps/activations/.*.work/shard-*")}
    step = cache.make(pipeline.activations(run, 0))
    check_same(step, right)
    assert 0 < len(made) < right.facts["shards"], "some had been made there"
    assert {name: (step.path / name).stat().st_mtime_ns for name in made} == made, "and were not made again"


@pytest.mark.skipif(not (DEMO / "model.safetensors").exists(), reason="the demo's model is not there")
def test_one_pass_for_encoder_decoder_and_transcripts_is_made_there_too(client, corpus, run_for, root, alike):
    run = run_for(DEMO, corpus(voices=3, clips=3), sites=("encoder.1.resid", "decoder.*.resid"))
    root("alone")
    cache.make(pipeline.clips(run, 0))
    every = [pipeline.decoded(run, 0), pipeline.activations(run, 0), sanity_checks.transcripts(run, 0)]
    right = [cache.make(recipe) for recipe in every]
    root("together")
    cache.make(pipeline.clips(run, 0))
    with parallel.using(client):
        for recipe, one in zip(every, right, strict=True):
            check_same(cache.make(recipe), one)
    assert len(list((cache.root() / "steps" / "recording").glob("[!.]*"))) == 1


def test_a_sweep_is_the_same(client, small_whisper, corpus, run_for, root, alike):
    run = run_for(small_whisper, corpus(voices=6, clips=4))
    points = sae_comparison.grid(run, 0)
    assert len(points) > 2
    made = {}
    for name in ("alone", "together"):
        root(name)
        cache.make(pipeline.clips(run, 0))
        cache.make(pipeline.activations(run, 0))
        with parallel.using(client if name == "together" else None):
            sweep = cache.make(sae_comparison.sweep(points, 0, run.focus))
        each = [cache.need(point.recipe(0, run.focus)) for point in points]
        made[name] = sae_comparison.scores(sweep).drop(columns="seconds"), each
    table, steps = made["together"]
    right, right_steps = made["alone"]
    assert table.to_csv() == right.to_csv()
    for step, right_step in zip(steps, right_steps, strict=True):
        check_same(step, right_step)


def test_a_point_that_would_be_another_one_there_is_refused(client, small_whisper, corpus, run_for, root, monkeypatch):
    run = run_for(small_whisper, corpus(voices=6, clips=2))
    root("data")
    cache.make(pipeline.clips(run, 0))
    cache.make(pipeline.activations(run, 0))
    points = sae_comparison.grid(run, 0, k=[2])
    edited("whisper_sae.experiments.fitting.taught", monkeypatch)
    sweep = sae_comparison.sweep(points, 0, run.focus)
    with (
        parallel.using(client),
        pytest.raises(parallel.Refused, match=rf"topk, k = 2.* its key is \w+, and {'.' * 12} "),
    ):
        cache.make(sweep)


def edited(name: str, monkeypatch):
    """As if the code of that name were another one here than in the workers."""
    read = code_hash.of

    def other(*parts) -> dict:
        found = read(*parts)
        return found | ({name: "0" * 12} if name in found else {})

    monkeypatch.setattr(code_hash, "of", other)


def arm(last: int) -> int:
    """In a worker: its call number `last` of the model is its last one. Its process number."""
    from whisper_sae.model import whisper_model

    record, calls = whisper_model.record, []

    def deadly(*args):
        calls.append(1)
        if len(calls) == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return record(*args)

    whisper_model.record = deadly
    return os.getpid()


def test_a_killed_worker_changes_nothing(client, small_whisper, corpus, run_for, root, alike, capsys):
    run = run_for(small_whisper, corpus(voices=4, clips=12))
    root("alone")
    cache.make(pipeline.clips(run, 0))
    right = cache.make(pipeline.activations(run, 0))
    assert right.facts["shards"] > 12
    together = root("together")
    cache.make(pipeline.clips(run, 0))
    first, second = client.nthreads()
    pid = client.run(arm, last=4, workers=[first])[first]  # half of its second shard is written
    other = client.run(arm, last=10**6, workers=[second])[second]
    with parallel.using(client):
        step = cache.make(pipeline.activations(run, 0))
    assert str(together) in str(step.path)
    assert client.run(os.getpid, workers=[second])[second] == other, "the other one has lived"
    assert first not in client.nthreads(), "one was killed"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    check_same(step, right)
    assert "shards/s" in (told := capsys.readouterr().err) and "2 workers" in told


def test_the_examples_to_copy_can_be_read():
    text = parallel.__doc__[parallel.__doc__.index("To copy") :]
    examples = re.findall(r"^(?: {4}.*\n|\n)+", text[text.index("\n\n") :], re.M)
    code = textwrap.dedent("".join(examples))
    compile(code, "cluster.py", "exec")
    assert [code.count(name) for name in ("SLURMCluster(", "KubeCluster(", "LocalCUDACluster(")] == [1, 1, 1]


def test_where_there_is_no_cluster_nothing_changes(monkeypatch):
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    assert parallel.client() is None
    begun = []
    done = parallel.each(lambda: begun.append(1) or (lambda n: n * n), range(4))
    assert list(done) == [(0, 0), (1, 1), (2, 4), (3, 9)]
    assert begun == [1]


# -------------------------------------------------------------------------------------- who is asked


def test_the_scheduler_of_the_environment_is_asked(client, root, monkeypatch):
    folder = root("data")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", client.scheduler.address)
    found = parallel.client()
    try:
        assert found is parallel.client() and found is not client
        with parallel.using(None):
            assert parallel.client() is None

        def begin():
            def work(n):
                from whisper_sae import cache, parallel

                return n, os.getpid(), str(cache.root()), parallel.client() is None

            return work

        told = dict(parallel.each(begin, range(8)))
        numbers, pids, roots, alone = zip(*(told[n] for n in range(8)), strict=True)
        assert numbers == tuple(range(8))
        assert os.getpid() not in pids
        assert set(roots) == {str(folder)} and all(alone), "who works there does not ask others"
    finally:
        parallel._connected.pop(client.scheduler.address).close()


def test_nobody_there(monkeypatch):
    import dask

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", address)
    with dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}), pytest.raises(parallel.NoCluster) as said:
        parallel.each(lambda: abs, [1])
    assert str(said.value).startswith(f"DASK_SCHEDULER_ADDRESS: no Dask scheduler answers at {address} within 0.3s")
    assert "unset the variable" in str(said.value) and "\n" not in str(said.value)


# ------------------------------------------------------------------------------------ what goes wrong


def test_after_an_error_the_rest_is_not_begun(client, root, tmp_path):
    root("data")

    def begin():
        def work(n):
            (tmp_path / f"begun-{n}").touch()
            time.sleep(0.05)
            if n == 4:
                raise ValueError("four is too many")
            return n

        return work

    with parallel.using(client), pytest.raises(ValueError, match=r"^four is too many$"):
        list(parallel.each(begin, range(200)))
    time.sleep(0.3)
    assert 4 < len(list(tmp_path.glob("begun-*"))) < 50
    assert not list(cache.root().glob(".seen-*"))
    with parallel.using(client):
        assert sorted(parallel.each(lambda: abs, [-1, -2])) == [(-2, 2), (-1, 1)], "the cluster works on"


def refused(client, **named) -> str:
    """How work is refused that would leave a file behind if it were done."""
    with parallel.using(client), pytest.raises(parallel.Refused) as said:
        list(parallel.each(lambda: Path.touch, [cache.root() / "done"], **named))
    assert not (cache.root() / "done").exists()
    assert "\n" not in str(said.value)
    return str(said.value)


def test_a_worker_of_another_version_is_refused(client, root, monkeypatch):
    root("data")
    monkeypatch.setattr(parallel, "_versions", lambda real=parallel._versions: real() | {"torch": "1.0"})
    said = refused(client)
    assert "has torch 2." in said and "here it is 1.0; install there what is installed here" in said


def test_a_worker_with_other_code_is_refused(client, root, monkeypatch):
    root("data")
    edited(f"{__name__}.refused.<locals>.<lambda>", monkeypatch)
    assert "<lambda> than is run here" in refused(client)


def test_a_worker_that_does_not_see_the_folder_is_refused(client, root, monkeypatch):
    folder = root("data")
    folder.mkdir()
    monkeypatch.setattr(Path, "touch", lambda self: None)
    said = refused(client)
    assert f"does not see the folder {folder} of the process that asks" in said and "WHISPER_SAE_DATA" in said


def test_what_a_worker_cannot_read_is_refused(client, root):
    root("data")

    class Gone:
        def __reduce__(self):
            return __import__, ("whisper_sae_of_tomorrow",)

    gone = Gone()
    with parallel.using(client), pytest.raises(parallel.Refused, match=r"cannot read what it is asked .*of_tomorrow"):
        list(parallel.each(lambda: gone, [1]))


def test_a_worker_without_this_package_says_so():
    sent = cloudpickle.dumps(parallel._sent())
    code = "import pickle, sys; sys.modules['whisper_sae'] = None\n" + (
        "try: pickle.load(sys.stdin.buffer)('', {}, b'', b'')\nexcept RuntimeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, timeout=60)
    assert b"install there what is installed here" in done.stdout, done.stderr.decode()


def test_what_was_made_there_has_to_be_seen_here(client, root, tmp_path, monkeypatch):
    root("data")
    monkeypatch.setattr(parallel, "PATIENCE", 1.0)
    late = threading.Timer(0.5, (tmp_path / "late").touch)
    with parallel.using(client):
        asked = parallel.each(lambda: abs, [1], made=lambda _: tmp_path / "late")
        late.start()
        assert list(asked) == [(1, 1)], "a slow file system is waited for"
        with pytest.raises(parallel.Lost, match=r"never: a worker has made it and it is not seen here"):
            list(parallel.each(lambda: abs, [1], made=lambda _: tmp_path / "never"))


def test_a_model_is_not_sent(client, root):
    root("data")
    weights = np.zeros(1 << 20)
    with parallel.using(client), pytest.raises(ValueError, match="bytes would be sent for every item; send names"):
        parallel.each(lambda: weights.take, [1])


def test_one_process_does_one_thing_at_a_time_and_begins_once(root, monkeypatch):
    monkeypatch.setattr(parallel, "_begun", ("", None))
    folder = root("data")
    folder.mkdir()
    terms = {"root": str(folder), "mark": str(folder), "versions": parallel._versions()}
    begun, busy, most = [], [], []

    def begin():
        begun.append(threading.get_ident())

        def work(n):
            busy.append(n)
            most.append(len(busy))
            time.sleep(0.01)
            busy.remove(n)
            return n

        return work

    monkeypatch.setattr(parallel, "_agreed", lambda terms, what: begin)
    for token in ("a", "b"):
        threads = [
            threading.Thread(target=parallel.at_work, args=(token, terms, b"", cloudpickle.dumps(n))) for n in range(8)
        ]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert len(begun) == 2 and len(most) == 16 and max(most) == 1


def test_work_that_kills_every_worker_ends(client, root, monkeypatch):
    root("data")
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 1)
    with parallel.using(client), pytest.raises(parallel.Lost, match="2 workers died one after the other") as said:
        list(parallel.each(lambda: lambda n: os.kill(os.getpid(), signal.SIGKILL), [1]))
    assert "\n" not in str(said.value)


# ------------------------------------------------------------------------------- two who write one shard


def test_two_who_write_one_shard_do_not_collide(tmp_path):
    folder, meet = tmp_path / "store", threading.Barrier(2)
    folder.mkdir()
    said = torch.arange(12.0).reshape(2, 3, 2)

    def begin():
        def hear(windows, _ready):
            meet.wait(10)
            return {"site": said + windows.start}, np.ones((2, 3), np.uint8)

        return hear, lambda windows: None

    work = store._work(begin, folder, lambda number: [range(0, 2), range(2, 4)], "float32")
    wrong = []

    def write():
        try:
            work([0])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert wrong == []
    assert np.load(folder / "shard-00000" / "site.npy").tolist() == torch.cat([said, said + 2]).view(-1, 2).tolist()
    assert not list(shards.parts(folder).iterdir())


def test_what_the_dead_left_is_cleared_away(tmp_path):
    left = shards.parts(tmp_path / "store") / "shard-00000-dead"
    left.mkdir(parents=True)
    (left / "site.npy").touch()
    one = {"site": torch.ones(1, 2, 2)}, np.ones((1, 2), np.uint8)
    told = store.write(tmp_path / "store", 2, lambda: (lambda *_: one, lambda _: None), shard=1, batch=1)
    assert told["frames"] == 4 and told["device"] == "cpu"
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
