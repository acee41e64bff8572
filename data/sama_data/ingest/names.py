"""Names that are unique, and digests of names that fit millions of times into memory."""

from __future__ import annotations

from hashlib import blake2b


def digest(*parts: str) -> int:
    """A whole number of 64 bits that stands for some text."""
    # Lengths keep ("ab", "c") apart from ("a", "bc").
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class UniqueNames:
    """Tells equal names apart by their order: name, name#2, name#3.

    Two different names of one digest would only give the second a number it did not need.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._copies: dict[str, int] = {}

    def name(self, wanted: str) -> str:
        """Returns the name, or the name with a number that no other has."""
        name = wanted
        while digest(name) in self._seen:
            copy = self._copies.get(wanted, 1) + 1
            self._copies[wanted] = copy
            name = f"{wanted}#{copy}"
        self._seen.add(digest(name))
        return name


class Seen:
    """Remembers what was seen, by digest."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def before(self, *parts: str) -> bool:
        """Whether this was seen before; from now on it was."""
        key = digest(*parts)
        if key in self._seen:
            return True
        self._seen.add(key)
        return False
