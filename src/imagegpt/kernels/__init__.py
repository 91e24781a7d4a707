"""Kernels in C++ for a CPU: a whole step of sampling (`step`), and what training needs (`training`).

Their sources are in the folder cpp. They are compiled by the machine's own C++ compiler when they are first wanted,
which takes some seconds, and kept on disk (`building`). Where there is no compiler everything runs without them.
"""
