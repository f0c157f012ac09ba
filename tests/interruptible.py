"""A run for test_kill.py to kill: makes one result of a profile, and says `ready` just before it begins.

    python tests/interruptible.py activations profile.toml [before|after N]
    python tests/interruptible.py reports folder-of-notebooks

With `before` or `after` it kills itself around the N-th rename, the moments at which something gets its name.
"""

import os
import signal
import sys

from whisper_sae import cache, profiles
from whisper_sae.experiments import feature_index, pipeline, sae_comparison
from whisper_sae.report import runner


def die_around(when: str, nth: int) -> None:
    """Make the nth call of os.rename or os.replace the last thing this process does, or nearly does."""
    calls = 0

    def deadly(rename):
        def call(*args, **named):
            nonlocal calls
            calls += 1
            if calls == nth and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*args, **named)
            if calls == nth:
                os.kill(os.getpid(), signal.SIGKILL)

        return call

    os.rename, os.replace = deadly(os.rename), deadly(os.replace)


def recipe_of(what: str, run: profiles.Profile) -> cache.Recipe:
    made = {
        "activations": lambda: pipeline.activations(run, 0),
        "dictionary": lambda: sae_comparison.dictionary(run, 0, run.focus),
        "index": lambda: feature_index.codes(run, 0, run.focus),
    }
    return made[what]()


if __name__ == "__main__":
    what, source, *around = sys.argv[1:]
    if what == "reports":
        plan = runner.plan(folder=source)
        make = lambda: runner.run(plan, jobs=2)  # noqa: E731
    else:
        recipe = recipe_of(what, profiles.choose(source))
        make = lambda: cache.make(recipe)  # noqa: E731
    if around:
        die_around(around[0], int(around[1]))
    print("ready", flush=True)
    make()
