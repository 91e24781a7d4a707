"""Extension points: implementations found by name, our own and those of other packages.

Ours are registered by a decorator. Another package declares its own as an entry point in its `pyproject.toml`:

    [project.entry-points."imagegpt.sources"]
    zarr = "their_package.zarr_source:ZarrSource"
"""

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Named = TypeVar("Named")


class Registry(Generic[T]):
    """Implementations of one kind by name.

    Args:
        kind: what they are, for error messages, for example "data source".
        group: the group of entry points under which other packages declare theirs, for example "imagegpt.sources".
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind, self.group = kind, group
        self._registered: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class or function under `name` and returns it unchanged.

        Raises: ValueError if the name is taken.
        """

        def decorator(implementation: T) -> T:
            if name in self._registered:
                raise ValueError(f"there is already a {self.kind} named {name!r}: choose another name")
            self._registered[name] = implementation
            return implementation

        return decorator

    def register_class(self, implementation: Named) -> Named:
        """Class decorator: register a class under its attribute `name`.

        Raises: ValueError if the name is taken.
        """
        checked: Any = implementation  # a subclass of T, which Python's type variables cannot say
        self.register(checked.name)(checked)
        return implementation

    def names(self) -> list[str]:
        """The known names: registered ones in the order of registration, then entry points in alphabetical order."""
        return [*self._registered, *sorted(self._entry_points().keys() - self._registered.keys())]

    def get(self, name: str) -> T:
        """Return the implementation registered under `name`; a registered one takes precedence over an entry point.

        Raises: ValueError if there is none, or if the package that provides it cannot be imported.
        """
        if name in self._registered:
            return self._registered[name]
        entry_point = self._entry_points().get(name)
        if entry_point is None:
            raise ValueError(f"there is no {self.kind} {name!r}: choose one of {', '.join(self.names())}")
        try:
            return entry_point.load()
        except Exception as error:  # whatever the other package raises
            package = entry_point.dist.name if entry_point.dist else entry_point.value
            raise ValueError(
                f"the {self.kind} {name!r} of {package} cannot be imported ({' '.join(str(error).split())}): "
                f"repair or uninstall {package}"
            ) from error

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {entry_point.name: entry_point for entry_point in entry_points(group=self.group)}
