"""What runs on the workers of a Dask cluster."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

from distributed import WorkerPlugin, get_worker

from xbarc.sweeping.trials import Trial, Unit, run_unit


class SendJob(WorkerPlugin):
    """Puts the files of a job where a worker can map them, also where it joins later.

    Parameters
    ----------
    files
        Contents by name.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        digest = hashlib.sha256(b"".join(files[name] for name in sorted(files)))
        self.name = f"xbarc-sweep-{digest.hexdigest()[:16]}"
        self.folder: Path | None = None

    @classmethod
    def of(cls, folder: Path) -> Self:
        """All files of a folder."""
        return cls({path.name: path.read_bytes() for path in sorted(folder.iterdir())})

    def setup(self, worker: Any) -> None:
        """Write the files."""
        del worker
        self.folder = Path(tempfile.mkdtemp(prefix=f"{self.name}-"))
        for name, content in self._files.items():
            (self.folder / name).write_bytes(content)

    def teardown(self, worker: Any) -> None:
        """Remove the files."""
        del worker
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def run_sent(job: str, unit: Unit) -> list[Trial]:
    """Run a unit of a job that this worker was sent, by the name of its plugin."""
    plugin = get_worker().plugins[job]
    assert isinstance(plugin, SendJob)
    return run_unit(str(plugin.folder), unit)
