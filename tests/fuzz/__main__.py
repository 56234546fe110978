"""Coverage-guided fuzzing by Atheris (`pip install atheris`; Linux, Python 3.11 to 3.13):

    python -m tests.fuzz fragment|journal|checkpoint|snapshot|config [-max_total_time=60 and others of libFuzzer's]

A fault stops it, with the input in `crash-*`. `make fuzz` gives a minute to each.
"""

import sys
import tempfile
from pathlib import Path

PACKAGES = ["drqn_dist", "replay_server", "tests.fuzz.readers"]


def main() -> None:
    try:
        import atheris
    except ImportError:
        raise SystemExit("this needs Atheris: pip install atheris") from None
    with atheris.instrument_imports(include=PACKAGES):
        from tests.fuzz.readers import LIMIT, READERS, seeds
    reader = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if reader not in READERS:
        raise SystemExit(f"usage: python -m tests.fuzz {'|'.join(READERS)} [OPTIONS of libFuzzer]")
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(reader)):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, f"-max_len={LIMIT}", corpus], READERS[reader])
        atheris.Fuzz()


main()
