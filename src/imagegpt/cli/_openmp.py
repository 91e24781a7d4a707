"""Make waiting OpenMP threads go to sleep soon, so that sampling stays fast on a busy machine.

By default a thread of libgomp, which torch ships, spins 300,000 times before it sleeps: 3 ms by design, but 18 ms on
processors whose pause instruction takes 140 cycles. If another program occupies the core of the thread that is waited
for, the spinning threads waste the time in which it could run, at each of hundreds of barriers per pixel: completions
that take 22 s on a quiet machine took 105 s beside two busy programs.

OpenMP libraries read the environment when they are loaded, so this must happen before torch is imported. Child
processes inherit the setting. docs/decisions has measurements on its page about waiting threads.
"""

from collections.abc import MutableMapping

# Spin for 0.2 to 1.2 ms: as fast as the default on a quiet machine, which a spin count of 1,000 was not.
POLICY = {
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "20000",  # libgomp (Linux), which would not spin at all with "passive" alone
    "KMP_BLOCKTIME": "1",  # milliseconds; LLVM's and Intel's libraries (macOS, Windows), default 200
}


def set_wait_policy(environment: MutableMapping[str, str]) -> None:
    """Set the wait policy, unless the user has set one of these variables.

    Args:
        environment: of this process; modified in place.
    """
    if not POLICY.keys() & environment.keys():
        environment.update(POLICY)
