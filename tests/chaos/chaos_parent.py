"""`python chaos_parent.py JOB LIBRARY INPUTS WORK ADDRESS EVERY`: put one job in trouble, from a process that is warm.

It prints a line of JSON for each fault, and one at the end with what was tried.
"""

import json
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from chaos_cases import Place, trouble_at
from chaos_jobs import in_child, jobs, make_inputs


def main(name, library, inputs, work, address, every):
    torch.set_num_threads(1)
    start, inputs, work = time.monotonic(), Path(inputs), Path(work)
    if not inputs.exists():
        inputs.mkdir()
        in_child(partial(make_inputs, inputs))
    place = Place(jobs(inputs, address)[name], inputs, work, library)
    refusals, cases, faults = Counter(), 0, 0
    for trouble in trouble_at(len(place.points), int(every)):
        fault, refusal = place.case(trouble)
        cases += 1
        if refusal is not None:
            refusals[refusal] += 1
        if fault is not None:
            faults += 1
            where = place.points[trouble.number - 1]
            _tell({"trouble": str(trouble), "number": trouble.number, "at": where, "fault": fault})
    minutes = round((time.monotonic() - start) / 60, 2)
    _tell({"points": len(place.points), "cases": cases, "faults": faults, "minutes": minutes, "refusals": refusals})


def _tell(facts):
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
