"""What OpenMP's threads do while they wait for each other: sleep soon, so that other programs do not starve them.

By default a thread of libgomp, which torch brings along, spins 300,000 times before it sleeps. That was meant to be 3
milliseconds and is 18 on processors whose pause instruction takes 140 cycles. While other work has the core of the
thread that is waited for, the spinning one uses up the time in which that thread could have run, at each of hundreds of
barriers a pixel: completions that take 22 s on a quiet machine took 105 s beside two busy programs.

An OpenMP library reads the environment when it is loaded, so this must be done before torch is imported. Processes that
are started from here inherit it. The figures are in docs/decisions, on the page about threads that wait.
"""

from collections.abc import MutableMapping

# 0.2 to 1.2 milliseconds of spinning: no slower on a quiet machine than the default, where 1,000 turns were.
POLICY = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "20000",  # of libgomp (Linux), whose "passive" alone does not spin at all
    "KMP_BLOCKTIME": "1",  # milliseconds, of LLVM's and Intel's libraries (macOS, Windows), in place of 200
}


def set_wait_policy(environment: MutableMapping[str, str]) -> None:
    """Let threads sleep soon, unless the user has said anything about it by one of these variables.

    Args:
        environment: of this process; it is changed.
    """
    if not POLICY.keys() & environment.keys():
        environment.update(POLICY)
