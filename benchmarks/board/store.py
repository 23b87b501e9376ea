"""Results in a JSON file that is whole at any time, so that a stopped run goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Results:
    """Named tables of rows; a row is a dict with a "key" that is unique in its table.

    Rows are written as they come. A row of a key that is there already replaces it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tables: dict[str, Any] = {}
        self.read()

    def has(self, table: str, key: str) -> bool:
        """Whether the table has a row of that key."""
        return any(row["key"] == key for row in self.tables.get(table, []))

    def get(self, table: str, key: str) -> dict[str, Any]:
        """The row of that key. Raises KeyError if there is none."""
        for row in self.tables.get(table, []):
            if row["key"] == key:
                return dict(row)
        raise KeyError(f"{self.path} has no {key!r} in {table!r}")

    def add(self, table: str, row: dict[str, Any]) -> None:
        """Put a row into the table and write the file."""
        self.read()
        rows = [r for r in self.tables.get(table, []) if r["key"] != row["key"]]
        self.tables[table] = sorted([*rows, row], key=lambda r: str(r["key"]))
        self.write()

    def set(self, name: str, value: Any) -> None:
        """Put a value that is no table of rows, and write the file."""
        self.read()
        self.tables[name] = value
        self.write()

    def read(self) -> None:
        """Take what stands in the file, where another run may have added rows."""
        if self.path.exists():
            self.tables = json.loads(self.path.read_text())

    def write(self) -> None:
        """Write everything: to another name first, which then takes the file's place."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        fresh.write_text(json.dumps(self.tables, indent=1, sort_keys=True) + "\n")
        os.replace(fresh, self.path)
