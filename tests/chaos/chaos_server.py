"""`python chaos_server.py FOLDER`: OpenAI's files as a server on this machine, whose address is printed."""

import sys
from pathlib import Path

from imagegpt import ColorPalette
from imagegpt.checkpoints.tensor_bundle import write_bundle
from misbehaving_server import Server
from openai_oracle import random_variables

PLACES = {".npy": "color-clusters"}


def main(folder):
    write_bundle(folder / "model.ckpt-131000", random_variables(num_layers=1), num_shards=32)
    ColorPalette.grey(11).save(folder / "kmeans_centers.npy")
    server = Server()
    for path in folder.iterdir():
        server.files[f"{PLACES.get(path.suffix, 'checkpoints/igpt-s/131000')}/{path.name}"] = path.read_bytes()
    sys.stdout.write(f"{server.address}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until nobody needs it


if __name__ == "__main__":
    main(Path(sys.argv[1]))
