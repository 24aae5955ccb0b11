"""What runs on the workers of a Dask cluster."""

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any, Self

from distributed import WorkerPlugin, get_worker

from xbarc.sweeping.trials import Trial, Unit, run_unit

_NAME = "xbarc-sweep"


class SendJob(WorkerPlugin):
    """Puts the files of a job where a worker can map them, also where it joins later.

    Parameters
    ----------
    files
        Contents by name.
    """

    name = _NAME

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files
        self.folder: Path | None = None

    @classmethod
    def of(cls, folder: Path) -> Self:
        """All files of a folder."""
        return cls({path.name: path.read_bytes() for path in sorted(folder.iterdir())})

    def setup(self, worker: Any) -> None:
        """Write the files."""
        del worker
        digest = hashlib.sha256(b"".join(self._files.values())).hexdigest()[:12]
        self.folder = Path(tempfile.mkdtemp(prefix=f"xbarc-{digest}-"))
        for name, content in self._files.items():
            (self.folder / name).write_bytes(content)

    def teardown(self, worker: Any) -> None:
        """Remove the files."""
        del worker
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def run_sent(unit: Unit) -> list[Trial]:
    """Run a unit of the job that this worker was sent."""
    job = get_worker().plugins[_NAME]
    assert isinstance(job, SendJob)
    return run_unit(str(job.folder), unit)
