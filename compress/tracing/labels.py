"""What each position of a tensor's dimension stands for, so that removing a channel can be followed through a network.

Every position of every dimension carries an *atom*. Two positions that must go together (a sum, a product over
them) have their atoms united. A view that divides a dimension in two, say 16 channels in 4 heads of 4, makes new
atoms for the rows and the columns: after the division only whole rows or whole columns can be removed, or the tensor
would not be rectangular. Position (row, column) is then a *pair*: it is gone as soon as its row or its column is.
Merging two dimensions makes pairs the other way round. So whole heads and head dimension, channel shuffles and
flattened images come out of one rule.

Two atoms are special: ``FIXED``, a position that cannot go (batch, time, pixels, the network's input), and ``FREE``,
one of a constant made on the way, which adapts to whatever it meets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

FIXED, FREE = 0, -1
Labels = list[np.ndarray]
"""Per dimension of a tensor, the atom of each position."""


@dataclass(frozen=True)
class Division:
    """A dimension of ``rows * columns`` positions seen as two: ``pairs[r * columns + c]`` is (row r, column c)."""

    rows: np.ndarray
    columns: np.ndarray
    pairs: np.ndarray


class Atoms:
    """Atoms, which of them are one (union-find), which cannot go, and which are pairs of others."""

    def __init__(self) -> None:
        self._parent = np.zeros(1024, dtype=np.int64)
        self._count = 1
        self.divisions: list[Division] = []
        self.frozen: dict[int, str] = {}
        """Atom -> why it cannot go. Not every atom of its class is a key; see ``reasons``."""

    def fresh(self, n: int) -> np.ndarray:
        """(n,) new atoms, of which nothing is known yet."""
        while self._count + n > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros_like(self._parent)])
        found = np.arange(self._count, self._count + n)
        self._parent[found] = found
        self._count += n
        return found

    def find(self, atoms: np.ndarray) -> np.ndarray:
        """For each atom the representative of those it is united with; FREE stays FREE."""
        root = np.where(atoms < 0, FIXED, atoms)
        while True:
            above = self._parent[root]
            if np.array_equal(above, root):
                return np.where(atoms < 0, FREE, root)
            self._parent[root] = self._parent[above]
            root = self._parent[root]

    def unite(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Unite position k of ``first`` with position k of ``second``, for every k; returns their common labels.

        Both are of one length.
        """
        a, b = self.find(first), self.find(second)
        differ = (a != b) & (a >= 0) & (b >= 0)
        for x, y in sorted(set(zip(a[differ].tolist(), b[differ].tolist(), strict=True))):
            low, high = sorted((self._root(x), self._root(y)))
            self._parent[high] = low
        return np.where(first < 0, second, first)

    def freeze(self, atoms: np.ndarray, reason: str, *, first: bool = False) -> None:
        """Note that none of these atoms can go, and why.

        The reason that was given first for an atom stays, unless this one is to come ``first``.
        """
        for atom in np.unique(atoms[atoms > FIXED]).tolist():
            self.frozen[atom] = reason if first else self.frozen.get(atom, reason)

    def fix(self, atoms: np.ndarray) -> None:
        """Note that these atoms are no channels at all: the taps of a filter, for example."""
        self.unite(atoms, np.full_like(atoms, FIXED))

    def _root(self, atom: int) -> int:
        while self._parent[atom] != atom:
            atom = int(self._parent[atom])
        return atom

    def divide(self, atoms: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Labels of the two dimensions that one of ``rows * columns`` positions is divided in."""
        if rows == 1 or columns == 1:
            one = np.full(1, FREE)
            return (one, atoms) if rows == 1 else (atoms, one)
        table = self.find(atoms).reshape(rows, columns)
        same_rows, same_columns = bool((table == table[0]).all()), bool((table == table[:, :1]).all())
        if same_rows and same_columns:
            self.freeze(atoms, "it is divided as pixels are")
            return np.full(rows, min(table[0, 0], FIXED)), np.full(columns, min(table[0, 0], FIXED))
        if same_rows:
            return np.full(rows, FIXED), table[0]
        if same_columns:
            return table[:, 0], np.full(columns, FIXED)
        for known in self.divisions:
            if len(known.rows) == rows and np.array_equal(self.find(known.pairs), table.ravel()):
                return known.rows, known.columns
        made = Division(self.fresh(rows), self.fresh(columns), atoms)
        self.divisions.append(made)
        return made.rows, made.columns

    def merge(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Labels of the one dimension that two are merged in."""
        r, c = self.find(rows), self.find(columns)
        if (c <= FIXED).all() and (r <= FIXED).all():
            # A constant adapts, also where it is merged with what is fixed.
            free = (r == FREE).all() or (c == FREE).all()
            return np.full(len(r) * len(c), FREE if free else FIXED)
        if (c <= FIXED).all():
            return np.repeat(rows, len(columns))
        if (r <= FIXED).all():
            return np.tile(columns, len(rows))
        for known in self.divisions:
            if len(known.rows) == len(r) and len(known.columns) == len(c):
                if np.array_equal(self.find(known.rows), r) and np.array_equal(self.find(known.columns), c):
                    return known.pairs
                continue
        made = Division(rows, columns, self.fresh(len(r) * len(c)))
        self.divisions.append(made)
        return made.pairs

    def view(self, labels: Labels, old: Sequence[int], new: Sequence[int]) -> Labels:
        """Labels after a view from shape ``old`` to shape ``new``, of equally many elements."""
        if 0 in old:
            return [np.full(n, FIXED) for n in new]
        dims = [(n, label) for n, label in zip(old, labels, strict=True) if n != 1]
        sizes = [n for n in new if n != 1]
        found: list[np.ndarray] = []
        while dims:
            taken, wanted = [dims.pop(0)], [sizes.pop(0)]
            before, after = taken[0][0], wanted[0]
            while before != after:
                if before < after:
                    taken.append(dims.pop(0))
                    before *= taken[-1][0]
                else:
                    wanted.append(sizes.pop(0))
                    after *= wanted[-1]
            found += self._regroup([label for _, label in taken], wanted)
        rest = iter(found)
        return [np.full(1, FREE) if n == 1 else next(rest) for n in new]

    def _regroup(self, labels: Labels, sizes: Sequence[int]) -> Labels:
        merged = labels[-1]
        for label in reversed(labels[:-1]):
            merged = self.merge(label, merged)
        parts: Labels = []
        for size in sizes[:-1]:
            first, merged = self.divide(merged, size, len(merged) // size)
            parts.append(first)
        return [*parts, merged]

    def settle(self) -> None:
        """Unite pairs of the same two atoms, whatever the order they were merged in."""
        changed = True
        while changed:
            changed = False
            known: dict[tuple[int, int], int] = {}
            for x, y, p in self.pairs():
                other = known.setdefault((min(x, y), max(x, y)), p)
                if other != p and self._root(other) != self._root(p):
                    self.unite(np.array([other]), np.array([p]))
                    changed = True

    def pairs(self) -> list[tuple[int, int, int]]:
        """The representatives of (row, column, their pair) for all pairs, each once."""
        found: dict[tuple[int, int, int], None] = {}
        for division in self.divisions:
            rows, columns = self.find(division.rows), self.find(division.columns)
            table = self.find(division.pairs).reshape(len(rows), len(columns))
            for r, row in enumerate(rows.tolist()):
                for c, column in enumerate(columns.tolist()):
                    found[(row, column, int(table[r, c]))] = None
        return list(found)

    def reasons(self) -> dict[int, str]:
        """{representative of a class of united atoms: why the class cannot go}."""
        found = {FIXED: "its width is tied to the network's input"}
        for atom, reason in self.frozen.items():
            found.setdefault(self._root(atom), reason)
        return found


@dataclass(frozen=True)
class Axis:
    """A dimension of a parameter or buffer that holds channels."""

    tensor: str
    dim: int
    labels: np.ndarray
    grouped: bool = False
    """The input channels of a grouped convolution, which its weight holds block by block."""


@dataclass
class ChannelTrace:
    """What one run of a network has shown of its channels."""

    atoms: Atoms = field(default_factory=Atoms)
    axes: list[Axis] = field(default_factory=list)
    blocks: list[tuple[np.ndarray, int]] = field(default_factory=list)
    """(labels of a dimension, number of equal parts that must stay equal): grouped convolutions, GroupNorm."""
    heads: list[np.ndarray] = field(default_factory=list)
    """Labels of dimensions that matrix products run over side by side: heads of attention, among others."""
    mixed: list[np.ndarray] = field(default_factory=list)
    """Labels of dimensions that were normalised or averaged over: there, removing is not the same as zeroing."""
    parts: list[np.ndarray] = field(default_factory=list)
    """Labels of slices of a dimension, and of the pieces of one that was split in sizes of their own."""
    summed: set[int] = field(default_factory=set)
    """Atoms of dimensions of weights that a product has summed over: these read channels, the others make them."""
    trained: bool = False
    """Whether a run in training mode is part of it: the network has layers that work only then."""


class Removal:
    """What goes with what: the closure of a removal under the rules of pairs."""

    def __init__(self, atoms: Atoms) -> None:
        atoms.settle()
        self._by_part: dict[int, set[int]] = defaultdict(set)
        self._by_pair: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for x, y, p in atoms.pairs():
            self._by_pair[p].append((x, y))
            self._by_part[x].add(p)
            self._by_part[y].add(p)

    def basics(self, atom: int) -> list[int]:
        """The atoms that ``atom`` is, in the end, a pair of; itself if it is none. Rows before columns."""
        found: dict[int, None] = {}
        seen: set[int] = set()

        def walk(one: int) -> None:
            if one in seen:
                return
            seen.add(one)
            parts = self._by_pair.get(one)
            if not parts:
                found[one] = None
                return
            for x, y in parts:
                walk(x)
                walk(y)

        walk(atom)
        return list(found)

    def is_basic(self, atom: int) -> bool:
        """Whether ``atom`` is no pair of others."""
        return not self._by_pair.get(atom)

    def closure(self, seed: int) -> frozenset[int]:
        """All atoms that go when ``seed`` goes; FIXED among them if it cannot."""
        gone: set[int] = set()
        todo = [seed]
        while todo:
            atom = todo.pop()
            if atom not in gone:
                gone.add(atom)  # FIXED stays in the set, as what makes a removal impossible
                todo += self._by_part.get(atom, ()) if atom > FIXED else ()
            if not todo:
                todo = self._completed(gone)
        return frozenset(gone)

    def _completed(self, gone: set[int]) -> list[int]:
        """What must go next: of the row and column of a pair that is gone, the one with less left in it.

        A list of one atom; an empty one where each pair that is gone has lost its row or column already.
        """
        for pair in sorted(gone):
            for x, y in self._by_pair.get(pair, ()):
                if x not in gone and y not in gone:
                    left = {part: len(self._by_part[part] - gone) for part in (x, y)}
                    return [min((x, y), key=lambda part: left[part] if part > FIXED else 1 << 60)]
        return []
