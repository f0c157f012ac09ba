"""Shards and points of a sweep on many machines, if there is a Dask cluster; without one nothing here is needed.

    dask scheduler                                        # says its address
    dask worker tcp://scheduler:8786 --nthreads 1         # on every machine; where it has several GPUs, dask-cuda's
    DASK_SCHEDULER_ADDRESS=tcp://scheduler:8786 make report PROFILE=large

or, for a part of a session in Python:

    with cluster.using(distributed.Client(...)):
        store.make(recipes.activations(run, seed))

Clips, rivals, probes and reports are made by who asks. All have to see the data folder under one path (`store.root`,
WHISPER_SAE_DATA; locks have to work there, as they do on NFS 4), and the corpora and models of the profile; all run the
same code on the same versions of Python, torch, transformers and numpy. A worker for which that is not so is refused
before it does anything. A process does one thing at a time: give each a GPU, or the cores that it may use. Who reaches
the ports of a Dask cluster can run anything there: keep it in a network that you trust, or give it TLS.

What is made is the same, byte for byte, as where one process makes it with as many threads on a processor of the same
kind: workers take whole shards and whole dictionaries, and all order is in their numbers. Another number of threads,
another processor or a GPU may round the last bits of a sum otherwise. Dask gives a worker OMP_NUM_THREADS=1, unless it
is set. (Recordings of the demo, in float32, came out the same with one thread and with two on the one processor, an
Intel Xeon, on which that was tried.)

To copy; none of these three has been run by this project's tests, which know a cluster on one machine. Their parameters
are those of dask-jobqueue 0.9.0, of dask-kubernetes 2026.3.0, and of dask-cuda 26.10, which wants dask 2026.7.1.

    from dask_jobqueue import SLURMCluster                # one GPU and eight cores a job; others: PBS, LSF, SGE

    jobs = SLURMCluster(
        cores=1, processes=1, job_cpu=8, memory="48GB", walltime="04:00:00",
        job_extra_directives=["--gpus=1"], job_script_prologue=["export OMP_NUM_THREADS=8"],
        worker_extra_args=["--lifetime", "225m", "--lifetime-stagger", "10m"],  # leaves before SLURM ends it
    )
    jobs.adapt(maximum_jobs=16)
    with distributed.Client(jobs) as client, cluster.using(client):
        store.make(recipes.activations(run, seed))

    from dask_kubernetes.operator import KubeCluster, make_cluster_spec  # helm has installed the operator

    spec = make_cluster_spec(name="hearing", image="registry/whisper_sae", n_workers=8, env={"OMP_NUM_THREADS": "8"})
    pod = spec["spec"]["worker"]["spec"]
    pod["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "speech"}}]  # ReadWriteMany, and with
    pod["containers"][0] |= {                             # who asks it is mounted at /data, too
        "args": [*pod["containers"][0]["args"], "--nthreads", "1"],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}], "resources": {"limits": {"nvidia.com/gpu": "1"}},
    }
    with KubeCluster(custom_cluster_spec=spec) as pods, distributed.Client(pods) as client, cluster.using(client):
        store.make(recipes.activations(run, seed))

    from dask_cuda import LocalCUDACluster                # every GPU of this machine; nothing else to share

    with LocalCUDACluster() as gpus, distributed.Client(gpus) as client, cluster.using(client):
        store.make(recipes.activations(run, seed))
"""

import os
import platform
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import cloudpickle

from whisper_sae import cache, code_hash

AT_ONCE = 2_000
"""Items that wait at the scheduler; the others wait here."""
HEAVY = 1 << 20
"""Bytes that may be sent for an item."""
PATIENCE = 60.0
"""Seconds until a file that another machine has written must be seen here; NFS may remember for so long that it was
not there."""


class NoCluster(ConnectionError):
    """No scheduler answers; one line, with the way out."""


class Refused(RuntimeError):
    """A worker that would not do the same as the process that asks; one line, with the way out."""


class Lost(RuntimeError):
    """Workers that die again and again, or a scheduler that is gone; one line. What was finished is kept."""


_given: list = []  # by `using`; the last one counts
_connected: dict[str, object] = {}  # the client of each address
_thread = threading.local()
_alone = threading.Lock()
_begun: tuple[str, Callable | None] = ("", None)  # in a worker: what it last began


# --------------------------------------------------------------------------------------------- who asks


def client():
    """The `distributed.Client` that work is sent by, or None where this process does it.

    It is the one given with `using`, or that of DASK_SCHEDULER_ADDRESS, connected once a process. What a worker makes
    on the way it makes itself. Raises NoCluster where no scheduler answers.
    """
    if getattr(_thread, "working", False):
        return None
    if _given:
        return _given[-1]
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if not address:
        return None
    if address not in _connected or _connected[address].status != "running":
        _connected[address] = _connect(address)
    return _connected[address]


@contextmanager
def using(asked):
    """Within the block, work is sent by this `distributed.Client`; by none, if it is None."""
    _given.append(asked)
    try:
        yield asked
    finally:
        _given.pop()


def _connect(address: str):
    import dask
    from distributed import Client

    found = Client.__new__(Client)  # two steps, so that one that finds nobody can be closed; it would linger
    try:
        found.__init__(address, set_as_default=False)
        return found
    except (OSError, ValueError) as error:
        with suppress(Exception):
            found.close()
        waited = dask.config.get("distributed.comm.timeouts.connect")
        raise NoCluster(
            f"DASK_SCHEDULER_ADDRESS: no Dask scheduler answers at {address} within {waited} "
            f"({type(error).__name__}); start one there, or unset the variable to work in this process"
        ) from None


def each(begin: Callable[[], Callable], items: Iterable, *, made: Callable[..., Path] | None = None) -> Iterator[tuple]:
    """`begin()(item)` of every item, by whoever is free: yields (item, result) as they are finished.

    `begin` is called once in every process that works, and is sent there with the item: it may be a nested function
    that holds names and small tables, never a model. What it runs must be the same code there, as in the key of a
    result (`fingerprints`); `made(item)` is what must then be seen here. Without a cluster this process works.

    What a dying worker had begun another one begins anew (as often as `distributed.scheduler.allowed-failures` says).
    The first error is raised as it was there, and what waits is cancelled. Raises Refused, Lost.
    """
    there = client()
    if there is None:
        return _all_here(begin, items)
    what = _packed((code_hash.of(begin), begin))
    print(f"cluster {there.scheduler.address}: {len(there.nthreads()) or 'waiting for'} workers", file=sys.stderr)
    return _all_there(there, what, items, made)


def _all_here(begin: Callable, items: Iterable) -> Iterator[tuple]:
    work = begin()
    for item in items:
        yield item, work(item)


def _all_there(there, what: bytes, items: Iterable, made: Callable | None) -> Iterator[tuple]:
    from distributed import as_completed

    token = uuid.uuid4().hex
    mark = cache.root() / f".seen-{token}"
    terms = {"root": str(cache.root()), "mark": str(mark), "versions": _versions()}
    task, left, doing = _sent(), enumerate(items), {}

    def submit(count: int) -> None:
        for number, item in islice(left, count):
            key = f"whisper_sae-{token}-{number}"
            doing[key] = there.submit(task, token, terms, what, _packed(item), key=key, pure=False), item
            finished.add(doing[key][0])

    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        finished = as_completed(loop=there.loop)
        submit(AT_ONCE)
        for future in finished:
            found = _result(there, future)
            _, item = doing.pop(future.key)
            future.release()  # or it would be done again if this worker died
            if made:
                _see(made(item))
            yield item, found
            submit(1)
    finally:
        mark.unlink(missing_ok=True)
        if doing and there.status == "running":
            there.cancel([future for future, _ in doing.values()])


def _result(there, future):
    from distributed import CancelledError, KilledWorker

    address, kept = there.scheduler.address, "what was finished is kept, run again to go on"
    try:
        return future.result()
    except KilledWorker as error:
        raise Lost(
            f"cluster {address}: {error.allowed_failures + 1} workers died one after the other over one piece of work, "
            f"the last was {error.last_worker.address}; is their memory too small? {kept}"
        ) from None
    except CancelledError:
        raise Lost(f"cluster {address}: the scheduler is gone, or has forgotten the work; {kept}") from None


def _see(path: Path) -> None:
    """Wait until what a worker has written is seen here."""
    until = time.monotonic() + PATIENCE
    while not path.exists():
        if time.monotonic() > until:
            raise Lost(f"{path}: a worker has made it and it is not seen here; do all share the folder {cache.root()}?")
        time.sleep(0.2)
        for folder in path.parents[:3]:
            with suppress(OSError):
                os.listdir(folder)  # has NFS look again


def _packed(what) -> bytes:
    """As it is sent. Dask would do the same, but its scheduler, too, would have to be able to read it."""
    sent = cloudpickle.dumps(what)
    if len(sent) > HEAVY:
        raise ValueError(f"cluster: {len(sent):,} bytes would be sent for every item; send names, and load there")
    return sent


def _versions() -> dict[str, str]:
    found = {name: version(name).partition("+")[0] for name in ("torch", "transformers", "numpy")}
    return {"python": platform.python_version().rpartition(".")[0]} | found


# --------------------------------------------------------------------------------------------- who works


def _sent() -> Callable:
    """What a worker is given to run. Being nested it is sent whole: it can be read where this package is not there, by
    the scheduler and by a worker that then says so."""

    def there(token: str, terms: dict, what: bytes, item: bytes):
        try:
            from whisper_sae.parallel import at_work
        except ImportError as error:
            import socket

            raise RuntimeError(
                f"worker on {socket.gethostname()}: {error}; install there what is installed here, and start it anew"
            ) from None
        return at_work(token, terms, what, item)

    return there


def at_work(token: str, terms: dict, what: bytes, item: bytes):
    """In a worker: do one item, having begun before the first one of this `token`."""
    global _begun
    with _alone:  # one model, and hooks on it
        _thread.working = True
        try:
            os.environ["WHISPER_SAE_DATA"] = terms["root"]
            if _begun[0] != token:
                _begun = ("", None)  # lets go of what was loaded for other work
                _begun = (token, _agreed(terms, what)())
            return _begun[1](cloudpickle.loads(item))
        finally:
            _thread.working = False


def _agreed(terms: dict, what: bytes) -> Callable:
    """What begins the work, if this process would do it as the one that asks; otherwise Refused."""
    me, way_out = _name(), "install there what is installed here, and start it anew"
    for name, wanted in terms["versions"].items():
        if (found := _versions()[name]) != wanted:
            raise Refused(f"{me} has {name} {found}, and here it is {wanted}; {way_out}")
    for _ in range(10):
        if Path(terms["mark"]).exists():
            break
        time.sleep(0.3)
    else:
        raise Refused(
            f"{me} does not see the folder {terms['root']} of the process that asks; all have to share it under one "
            "path: point WHISPER_SAE_DATA to such a folder"
        )
    try:
        code, begin = cloudpickle.loads(what)
    except Exception as error:
        raise Refused(f"{me} cannot read what it is asked ({type(error).__name__}: {error}); {way_out}") from None
    here = code_hash.of(begin)
    for name in sorted(code | here):
        if code.get(name) != here.get(name):
            raise Refused(f"{me} runs another code of {name} than is run here; {way_out}")
    return begin


def _name() -> str:
    from distributed import get_worker

    try:
        return f"worker {get_worker().address}"
    except ValueError:
        return f"worker on {socket.gethostname()}"
