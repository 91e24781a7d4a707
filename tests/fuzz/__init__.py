"""A fuzzer for everything that people hand to this package: pictures, folders, recipes, command lines.

    make fuzz                                  all kinds, minutes
    python -m tests.fuzz --hours 2             one seed after the other
    python -m tests.fuzz --kind recipes --cases 5000 --seed 7
    python -m tests.fuzz --replay FOLDER       one case that was kept, with its traceback

Each kind of input has a file that says how the undamaged originals are made, how they are damaged, and how they are
opened. `mutations.py` damages bytes, `formats.py` and `arrow_formats.py` damage what a format holds and keep the format
whole. `worker.py` opens damaged copies in a forked child under limits, and `runner.py` keeps such children busy.
A case depends on seed, kind and number alone.
"""
