"""`whisper-sae` or `python -m whisper_sae`: run and publish the notebooks of a profile, or pair their two halves."""

import argparse
import os
import signal
import sys


class Terminated(KeyboardInterrupt):
    """SIGTERM, as a batch system or a container sends it before it kills: everything ends as after Ctrl-C."""


def _interrupted(interrupt: KeyboardInterrupt) -> int:
    ended, code = ("terminated", 143) if isinstance(interrupt, Terminated) else ("interrupted", 130)
    print(
        f"\nwhisper_sae: {ended}; what was finished is published; the same command goes on from there", file=sys.stderr
    )
    return code


def _terminate(*_signal) -> None:
    raise Terminated


try:  # importing takes seconds, in which one may change one's mind
    if __name__ == "__main__":
        signal.signal(signal.SIGTERM, _terminate)
    from whisper_sae import private_paths
    from whisper_sae.report import runner
except KeyboardInterrupt as interrupt:
    sys.exit(_interrupted(interrupt))


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"whisper_sae: {message} (--help shows what there is)\n")


def main(arguments=None) -> int:
    """Returns 0 if all went well, 1 if a notebook failed or a pair disagrees, 2 if the request is wrong."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if private_paths.INSTALLED:  # notebooks run in another directory than the caller's
        os.environ.setdefault("WHISPER_SAE_DATA", str(private_paths.data()))
        os.environ.setdefault("WHISPER_SAE_REPORTS", str(private_paths.reports().absolute()))
    try:
        if arguments[:1] == ["pair"]:
            return _pair(arguments[1:])
        return _run(arguments)
    except KeyboardInterrupt as interrupt:
        return _interrupted(interrupt)


def _run(arguments: list[str]) -> int:
    parser = _Parser(
        prog="python -m whisper_sae",
        description="Run the notebooks of a profile and write reports/<profile>/index.html.",
        epilog="`python -m whisper_sae pair` brings each .ipynb up to its .py; `pair --check` only looks; "
        "`pair --execute` runs all at profile demo and records the checked outputs.",
    )
    parser.add_argument("profile", nargs="?", default="demo", help="a name or a .toml file (default: demo)")
    parser.add_argument("notebooks", nargs="*", metavar="NN", help="only these notebooks, such as 01 04")
    parser.add_argument("--seed", type=int, default=0, help="one seed for everything random (default: 0)")
    parser.add_argument(
        "-p",
        dest="given",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="another parameter",
    )
    parser.add_argument(
        "--jobs", type=int, default=0, help="notebooks to run at a time (default: 2, if cores and memory allow)"
    )
    asked = parser.parse_intermixed_args(arguments)
    if asked.profile[:2].isdecimal() and not asked.profile.endswith(".toml"):
        asked.profile, asked.notebooks = "demo", [asked.profile, *asked.notebooks]
    if asked.seed < 0:
        parser.error(f"--seed: must be 0 or more, got {asked.seed}")
    if asked.jobs < 0:
        parser.error(f"--jobs: must be 1 or more, or 0 for the default, got {asked.jobs}")
    plan = _checked(parser, lambda: runner.plan(asked.profile, asked.notebooks, asked.seed, asked.given))
    return _tell(plan, runner.run(plan, jobs=asked.jobs))


def _pair(arguments: list[str]) -> int:
    parser = _Parser(prog="python -m whisper_sae pair", description="Keep each notebook's .py and .ipynb together.")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="change nothing; exit 1 if a pair does not agree")
    how.add_argument("--execute", action="store_true", help="run at demo and record the checked outputs")
    asked = parser.parse_args(arguments)
    folder = runner.NOTEBOOKS
    if asked.check:
        faults = runner.pairing.disagreements(folder)
        for fault in faults:
            print(f"whisper_sae: {fault}", file=sys.stderr)
        return 1 if faults else 0
    failed = 0
    if asked.execute:
        plan = _checked(parser, runner.plan)
        failed = _tell(plan, runner.run(plan))
        written = runner.record(plan)
    else:
        written = runner.pairing.sync(folder)
    for path in written:
        print(f"updated {path.name}")
    return failed


def _checked(parser, ask):
    try:
        return ask()
    except (ValueError, FileNotFoundError) as wrong:
        parser.exit(2, f"whisper_sae: {wrong}\n")


def _tell(plan, rows: dict) -> int:
    failed = {name: row["error"] for name, row in rows.items() if row["status"] == "failed"}
    for name, error in failed.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    print(plan.where / "index.html")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
