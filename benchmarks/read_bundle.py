"""How long does it take to read a TensorFlow checkpoint of iGPT-S's size, and how much memory beyond what it gives?

    python benchmarks/read_bundle.py                # 306 MB in 32 files, random numbers
    python benchmarks/read_bundle.py --repeats 9

A checkpoint is written, untimed, and lies in the system's file cache then. In a process of its own it is read, every
checksum looked at: as arrays, which are views of the mapped files, and as a model's weights, which are copies. Memory
is what the process has for itself (RssAnon; pages of mapped files are the system's, which may take them back).
transformers cannot read such files, so nothing stands beside it. Ends with one JSON line.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from imagegpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from imagegpt.checkpoints.openai import from_openai, to_openai
from imagegpt.checkpoints.tensor_bundle import read_bundle, write_bundle

SECONDS, BYTES = 3.0, 100e6  # aimed at
SHARDS = 32


def own_bytes() -> int:
    """What this process has for itself."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


class Peak:
    """The most memory while a block runs, looked at every millisecond."""

    def __enter__(self) -> "Peak":
        self.before = self.most = own_bytes()
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self.most = max(self.most, own_bytes())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        self.most = max(self.most, own_bytes())


def read(prefix: Path, kind: str) -> dict[str, float]:
    """Read once: seconds, the bytes of the result that are this process's own, and those beyond it at the worst."""
    with Peak() as peak:
        start = time.perf_counter()
        bundle = read_bundle(prefix)
        result = dict(bundle) if kind == "arrays" else from_openai(bundle).weights
        seconds = time.perf_counter() - start
    size = sum(int(one.nbytes) for one in result.values())
    held = 0 if kind == "arrays" else size
    return {"seconds": seconds, "size": size, "beyond": peak.most - peak.before - held}


def main() -> None:
    from _common import finish, parser

    options = parser(__doc__).parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "model.ckpt-1"
        config = ImageGPTConfig.from_size("small", use_bias=False)
        weights = ImageGPTForCausalImageModeling(config).state_dict()
        write_bundle(prefix, to_openai(config, weights), num_shards=SHARDS)
        for kind in ("arrays", "weights"):
            command = [sys.executable, __file__, "--read", str(prefix), kind]
            told = [
                json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(options.repeats)
            ]
            seconds, beyond = ([one[name] for one in told] for name in ("seconds", "beyond"))
            results[kind] = {"seconds": seconds, "beyond": beyond, "bytes": told[0]["size"]}
            print(
                f"{kind:8} {told[0]['size'] / 1e6:,.0f} MB in {statistics.median(seconds):.2f} s "
                f"({min(seconds):.2f} to {max(seconds):.2f}; {SECONDS} aimed at), "
                f"at most {max(beyond) / 1e6:,.0f} MB beyond the result ({BYTES / 1e6:,.0f} aimed at)"
            )
    finish("read_bundle", options, {"results": results, "ok": _is_ok(results)})


def _is_ok(results: dict[str, dict[str, list[float]]]) -> bool:
    return all(statistics.median(one["seconds"]) < SECONDS and max(one["beyond"]) < BYTES for one in results.values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(read(Path(sys.argv[2]), sys.argv[3])))
    else:
        main()
