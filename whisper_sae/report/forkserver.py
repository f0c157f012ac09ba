"""Kernels without the seconds of importing: one process imports what notebooks import, and each kernel is its fork.

To import torch, transformers and the rest takes five seconds of a core and 300 MB for each notebook. A fork has all of
it at once and shares the memory. Whatever has threads or a GPU in use must not be forked, so the server does nothing
but import, and `report` uses it on Linux where no GPU is.

    python -m whisper_sae.report.forkserver notebooks  # a line of JSON, a kernel's arguments, is answered with its pid
"""

import ast
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import zmq
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager


class ForkServer:
    """The process that imports, seen from the one that starts notebooks; it ends with `close`, or with this process."""

    def __init__(self, folder: Path):
        command = [sys.executable, "-m", "whisper_sae.report.forkserver", str(folder)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self.lock = threading.Lock()

    def start(self, arguments: list[str]) -> "Forked":
        """A new kernel with these arguments of `ipykernel_launcher`. Raises RuntimeError when the server has ended."""
        with self.lock, suppress(BrokenPipeError):
            print(json.dumps(arguments), file=self.process.stdin, flush=True)
            if answer := self.process.stdout.readline():
                return Forked(int(answer))
        raise RuntimeError(f"the process that imports for all notebooks has ended with {self.process.wait()}")

    def close(self) -> None:
        """End the server; kernels that still run end themselves."""
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Forked:
    """A kernel that the server started: what jupyter_client asks of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int):
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        """None while it runs; how it ended is not known."""
        if self.returncode is None:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                self.returncode = 0
        return self.returncode

    def wait(self) -> int:
        """Wait until it has ended."""
        while self.poll() is None:
            time.sleep(0.05)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)


class KernelManager(AsyncKernelManager):
    """Starts kernels of the Python that runs this, whatever `python3` names in the user's Jupyter folders.

    What a kernel is told and says goes over local sockets, encrypted where the machine can.
    """

    running: ClassVar[set] = set()
    """Those whose kernel runs, so that it can be killed from another thread."""
    server: ClassVar[ForkServer | None] = None
    """What kernels are forked from; without it each is a new process that imports by itself."""

    async def _async_launch_kernel(self, kernel_cmd, **options):
        if self.server is None:
            return await super()._async_launch_kernel(kernel_cmd, **options)
        self.provisioner.process = self.server.start(kernel_cmd[kernel_cmd.index("-f") :])
        self.provisioner.pid = self.provisioner.pgid = self.provisioner.process.pid
        return self._reconcile_connection_info(self.provisioner.connection_info)

    async def _async_interrupt_kernel(self):
        """A kernel that is shut down has ended its cells, well or not: to interrupt it would only make it complain."""
        if not self.shutting_down:
            await super()._async_interrupt_kernel()

    interrupt_kernel = _async_interrupt_kernel

    async def _async_post_start_kernel(self, **options):
        self.running.add(self)
        await super()._async_post_start_kernel(**options)

    async def _async_cleanup_resources(self, restart=False):
        self.running.discard(self)
        await super()._async_cleanup_resources(restart)

    cleanup_resources = _async_cleanup_resources

    @classmethod
    def kill_all(cls) -> None:
        """Kill every kernel, and what it started."""
        for process in [one.provisioner.process for one in list(cls.running) if one.has_kernel]:
            with suppress(ProcessLookupError):  # it has just ended
                if process and process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL) if hasattr(os, "killpg") else process.kill()

    def _transport_encryption_default(self):
        return "auto" if zmq.has("curve") else "disabled"

    def _kernel_spec_manager_default(self):
        return KernelSpecManager(kernel_dirs=[])


# ------------------------------------------------------------------------------------------- in the server


def serve(folder: Path) -> None:
    """Import what notebooks import, then fork a kernel for every line of the standard input, until that ends."""
    _import_all(folder)
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")  # of BLAS, which expects it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # kernels that end leave no zombie
    gc.freeze()  # shared memory is copied when the collector marks it
    while line := sys.stdin.readline():
        if pid := os.fork():
            print(pid, flush=True)
        else:
            _be_kernel(json.loads(line))
            return


def _import_all(folder: Path) -> None:
    """Run the import statements of the setup cells; one that fails does so again in its notebook, where it is seen."""
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as a kernel sets it
    os.environ["JPY_PARENT_PID"] = str(os.getpid())  # read when ipykernel is imported: kernels end when this does
    with suppress(Exception):
        import ipykernel.kernelapp  # noqa: F401
    for path in sorted(folder.glob("[0-9][0-9]_*.py")):
        for cell in re.split(r"^(?=# %%)", path.read_text(encoding="utf-8"), flags=re.M):
            if '"setup"' in cell.partition("\n")[0]:
                for line in ast.parse(cell).body:
                    if isinstance(line, ast.Import | ast.ImportFrom):
                        with suppress(Exception):
                            exec(ast.unparse(line), {})


def _be_kernel(arguments: list[str]) -> None:
    """What `python -m ipykernel_launcher` does, in this process."""
    from ipykernel.kernelapp import launch_new_instance

    os.setsid()
    gc.unfreeze()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # the standard output was the way to whoever asked
    sys.argv[:] = ["ipykernel_launcher", *arguments]
    launch_new_instance()


if __name__ == "__main__":
    if Path(sys.path[0] or ".").resolve() == Path.cwd():
        del sys.path[0]  # as ipykernel_launcher does
    serve(Path(sys.argv[1]))
