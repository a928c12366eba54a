"""The weights with the lowest validation loss so far."""

from pathlib import Path

from minigpt.model.checkpoint import DamagedFileError, Tensors, load, save


class BestWeights:
    """The best weights of a training: in a file for each step that had them, or in memory.

    On disk they take no memory, and checkpoints of a training do not repeat them. The best weights
    of a checkpoint are those of the newest file that is not newer than the checkpoint.

    Args:
        folder: Folder of the files; None keeps the weights in memory.
    """

    def __init__(self, folder: Path | None = None):
        self._folder = folder
        self._tensors: Tensors = {}

    def keep(self, step: int, tensors: Tensors) -> None:
        """Keep `tensors` as the best weights, which `step` steps gave."""
        if self._folder is None:
            self._tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        else:
            save(self._file(step), tensors, {"step": step})

    def load(self, step: int) -> Tensors:
        """Return the best weights, which `step` steps gave.

        Raises:
            FileNotFoundError, DamagedFileError: Their file is missing or damaged.
        """
        return self._tensors if self._folder is None else load(self._file(step))[0]

    def exist(self, step: int) -> bool:
        """Return whether the best weights of `step` can be loaded; step 0 has none."""
        if step == 0:
            return True
        try:
            self.load(step)
        except (FileNotFoundError, DamagedFileError):
            return False
        return True

    def drop_older(self, step: int) -> None:
        """Delete the files that no checkpoint of `step` or more steps needs."""
        older = [file for file in self._files() if _step(file) <= step]
        for file in older[:-1]:
            file.unlink(missing_ok=True)

    def drop_newer(self, step: int) -> None:
        """Delete the files of more than `step` steps, which will be trained again."""
        for file in self._files():
            if _step(file) > step:
                file.unlink(missing_ok=True)

    def _file(self, step: int) -> Path:
        assert self._folder is not None
        return self._folder / f"best-{step:09d}.safetensors"

    def _files(self) -> list[Path]:
        return [] if self._folder is None else sorted(self._folder.glob("best-*.safetensors"))


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("best-"))
