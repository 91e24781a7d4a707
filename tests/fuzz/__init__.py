"""A fuzzer for all inputs of this package: images, folders, recipes, command lines.

    make fuzz                                  all kinds, minutes
    python -m tests.fuzz --hours 2             one seed after the other
    python -m tests.fuzz --kind recipes --cases 5000 --seed 7
    python -m tests.fuzz --replay FOLDER       one failed case, with its traceback

Each kind of input has a file that creates undamaged originals, damages them and opens them. `mutations.py` damages
bytes; `formats.py` and `arrow_formats.py` damage the content and keep the file format valid. `worker.py` opens damaged
copies in a forked child process under limits, and `runner.py` runs several such children. A case depends only on seed,
kind and number.
"""
