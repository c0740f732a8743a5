"""Lists and prunes the store of reference scores."""

import shutil
import time
from datetime import datetime
from io import StringIO

from rich.console import Console
from rich.table import Table

from lit_pref.errors import UsageError, UserError
from lit_pref.printing import say
from lit_pref.references.store_admin import Kept, in_use, kept, tidy


def table() -> str:
    """The references in the store, as text."""
    folders = list(kept())
    if not folders:
        return "the reference store is empty"
    rows = Table(title="Stored reference scores", title_justify="left")
    for column in ("name", "reference", "numerics", "kept per response"):
        rows.add_column(column)
    for column in ("responses", "MiB", "last used"):
        rows.add_column(column, justify="right")
    for one in folders:
        about = one.about
        used = datetime.fromtimestamp(one.used).strftime("%Y-%m-%d %H:%M")
        numbers = (str(one.rows), f"{one.size / 2**20:.1f}", used)
        rows.add_row(one.folder.name[:12], about["description"], about["numerics"], about["aggregation"], *numbers)
    out = StringIO()
    Console(file=out, width=140, force_terminal=False).print(rows)
    return out.getvalue().rstrip()


def remove(which: str | None) -> None:
    """Remove leftovers of killed processes, and references unused for `which` days or with the name `which`.

    Raises:
        UsageError: no reference has the name.
    """
    folders = list(kept())
    freed = sum(tidy(one.folder) for one in folders)
    chosen: list[Kept] = []
    if which is not None and which.isdigit() and len(which) < 6:
        chosen = [one for one in folders if time.time() - one.used > 86400 * int(which)]
    elif which is not None:
        chosen = [one for one in folders if one.about["description"] == which or one.folder.name.startswith(which)]
        if not chosen:
            known = ", ".join(one.folder.name[:12] for one in folders) or "nothing"
            raise UsageError(f"--prune {which}: no reference in the store has this name; it contains {known}")
    if busy := [one.folder.name[:12] for one in chosen if in_use(one.folder)]:
        raise UserError(f"{', '.join(busy)} is being filled by a running process: wait for it, or stop it first")
    for one in chosen:
        shutil.rmtree(one.folder)
        freed += one.size
        say(f"removed {one.folder.name[:12]}  {one.about['description']}, {one.about['numerics']}")
    say(f"{freed / 2**20:.1f} MiB freed")
