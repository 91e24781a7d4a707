"""The type checker that `test_shapes.py` puts behind jaxtyping: beartype, to which an int is also a float (PEP 484)."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
