"""A source whose annotations are held in memory and whose pictures lie on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from s2rm_jax.errors import UserError
from s2rm_jax.input.example import Example

Groups = tuple[tuple[int, ...], ...]  # the positions of an example's expressions, those of one referent together


class StoredSource:
    """Random access to examples that were read beforehand; pictures are looked for when they are asked for."""

    def __init__(self, name: str, examples: Sequence[Example], referents: Sequence[Groups]):
        """Args: a name for messages; the examples; for each the positions of its expressions, grouped by referent."""
        self._name = name
        self._examples = tuple(examples)
        self._referents = tuple(referents)
        assert len(self._examples) == len(self._referents)

    @property
    def num_expressions(self) -> int:
        """The number of sentences of the split."""
        return sum(len(example.expressions) for example in self._examples)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        """Returns a picture's path, size and expressions; raises a UserError if its file is not there."""
        example = self._examples[index]
        if isinstance(example.image, Path) and not example.image.is_file():
            raise UserError(f"the picture {example.image} of {self._name} is missing; put it there again")
        return example

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def expression_count(self, index: int) -> int:
        """Returns how many expressions the picture has."""
        return len(self._examples[index].expressions)

    def referents(self, index: int) -> Groups:
        """Returns the positions of the picture's expressions, grouped by the referent that they share."""
        return self._referents[index]
