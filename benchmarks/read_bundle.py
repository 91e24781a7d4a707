"""How long does it take to read a TensorFlow checkpoint of iGPT-S's size, and with how much temporary memory?

    python benchmarks/read_bundle.py                # 306 MB in 32 files, random numbers
    python benchmarks/read_bundle.py --repeats 9

A checkpoint is written, untimed, so it is in the system's page cache. A subprocess reads it and verifies all checksums:
as arrays, which are views of the mapped files, and as a model's weights, which are copies. Memory is the private memory
of the process (RssAnon, without pages of mapped files, which the system can reclaim). transformers cannot read such
files, so there is no comparison. The last line of the output is JSON.
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

TARGET_S, TARGET_BYTES = 3.0, 100e6
SHARDS = 32


def private_bytes() -> int:
    """The private memory of this process."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))


class PeakMemory:
    """The peak memory of a `with` block, sampled every millisecond."""

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = private_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(0.001):
            self.peak = max(self.peak, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, private_bytes())


def read(prefix: Path, kind: str) -> dict[str, float]:
    """Read once: seconds, the size of the result, and the peak of temporary memory in bytes."""
    with PeakMemory() as memory:
        start = time.perf_counter()
        bundle = read_bundle(prefix)
        result = dict(bundle) if kind == "arrays" else from_openai(bundle).weights
        seconds = time.perf_counter() - start
    size = sum(int(one.nbytes) for one in result.values())
    held = 0 if kind == "arrays" else size
    return {"seconds": seconds, "size": size, "temporary_bytes": memory.peak - memory.before - held}


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
            runs = [
                json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
                for _ in range(options.repeats)
            ]
            seconds, temporary = ([run[name] for run in runs] for name in ("seconds", "temporary_bytes"))
            results[kind] = {"seconds": seconds, "temporary_bytes": temporary, "bytes": runs[0]["size"]}
            print(
                f"{kind:8} {runs[0]['size'] / 1e6:,.0f} MB in {statistics.median(seconds):.2f} s "
                f"({min(seconds):.2f} to {max(seconds):.2f}; target {TARGET_S}), "
                f"at most {max(temporary) / 1e6:,.0f} MB of temporary memory (target {TARGET_BYTES / 1e6:,.0f})"
            )
    finish("read_bundle", options, {"results": results, "ok": _is_ok(results)})


def _is_ok(results: dict[str, dict[str, list[float]]]) -> bool:
    return all(
        statistics.median(one["seconds"]) < TARGET_S and max(one["temporary_bytes"]) < TARGET_BYTES
        for one in results.values()
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        print(json.dumps(read(Path(sys.argv[2]), sys.argv[3])))
    else:
        main()
