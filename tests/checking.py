"""beartype as the tests use it: an int is a float, as everywhere else in Python's typing."""

from beartype import BeartypeConf, beartype

typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))
