"""The subprocess of a memory measurement: `python -m imagegpt.benchmarking TASK` prints JSON, see `memory`."""

import json
import sys

from imagegpt.benchmarking.memory import measure_added_bytes

if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure_added_bytes(json.loads(sys.argv[1]))) + "\n")
