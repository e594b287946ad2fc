"""What a page is asked for: the parameters of its address, and the runs that they name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from forge.errors import UserError
from forge.results.runs import Run
from forge.workbench.library import Library


def url(view: str, **parameters: object) -> str:
    """A page's address, relative, so that it holds behind any path; lists repeat their key."""
    given = {key: value for key, value in parameters.items() if value not in ("", None, [])}
    return f"{view}?{urlencode(given, doseq=True)}" if given else view


@dataclass(frozen=True)
class Asked:
    """The parameters of an address; `view` is the page's name."""

    view: str
    parameters: Mapping[str, list[str]]
    library: Library

    def text(self, key: str, default: str = "") -> str:
        return self.parameters.get(key, [default])[-1]

    def several(self, key: str) -> list[str]:
        return list(dict.fromkeys(self.parameters.get(key, [])))

    def number(self, key: str, default: int) -> int:
        """Raises `UserError` for what is no whole number."""
        text = self.text(key) or str(default)
        if not text.lstrip("-").isdecimal():
            raise UserError(f"{key}={text}: a whole number")
        return int(text)

    def here(self, **changed: object) -> str:
        """This page's address with other parameters."""
        return url(self.view, **{**self.parameters, **changed})

    @property
    def chosen(self) -> list[str]:
        """Ids of the runs that the address names; of a part of an id the only run that has it.

        Raises `UserError` for a name that no run, or more than one, has.
        """
        return list(dict.fromkeys(self._id(name) for name in self.several("run") if name.strip()))

    def _id(self, name: str) -> str:
        known = self.library.kept
        if name in known:
            return name
        fits = [id for id in known if name in id or str(known[id].path) == name.rstrip("/")]
        if len(fits) > 1:
            more = ", …" if len(fits) > 3 else ""
            raise UserError(f"{name}: {len(fits)} runs have this in their names: "
                            f"{', '.join(fits[:3])}{more}")  # fmt: skip
        return self.library.find(fits[0] if fits else name).id

    def runs(self) -> dict[str, Run]:
        """The runs that the address names, read."""
        return {id: self.library.run(id) for id in self.chosen}
