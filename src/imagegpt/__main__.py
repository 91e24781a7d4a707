"""`python -m imagegpt` is `imagegpt`; launchers such as torchrun and accelerate want a module."""

from imagegpt.cli import main

if __name__ == "__main__":
    main()
