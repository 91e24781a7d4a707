"""The process of one contestant: `python -m imagegpt.benchmarking TASK` prints the bytes it takes, see `memory`."""

import json
import sys

from imagegpt.benchmarking.memory import added_bytes

if __name__ == "__main__":
    sys.stdout.write(json.dumps(added_bytes(json.loads(sys.argv[1]))) + "\n")
