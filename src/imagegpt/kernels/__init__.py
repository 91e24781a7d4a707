"""Kernels in C++ for a CPU: what drawing a pixel costs (`decoding`), and attention as training needs it (`training`).

They are in the folder cpp, are compiled by the machine's own C++ compiler when they are first wanted, which takes some
seconds, and kept on disk (`building`). Where there is no compiler everything runs without them.
"""
