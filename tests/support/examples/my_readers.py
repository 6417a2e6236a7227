"""my_readers.py, for data.sets.NAME.layout: my_readers:FlatReader"""

from pathlib import Path

from pydantic import Field

from trainables.components import Options
from trainables.data.readers import Reader
from trainables.data.readers.folders import image_names, still, train_on_all
from trainables.data.tracklet import DataSet


class FlatOptions(Options):
    separator: str = Field("_", description="what separates identity, camera and number")


class FlatReader(Reader):
    """Images in one folder, named by identity, camera and number; all of them train."""

    kind = "image"
    expected = "expected files as 0001_c1_003.jpg: identity, camera, number"
    Options = FlatOptions

    def recognise(self, folder: Path) -> bool:
        return any(folder.glob("*.jpg"))

    def read(self, folder: Path, name: str, options: FlatOptions) -> DataSet:
        parts = {file: file.split(options.separator) for file in image_names(folder, self.expected)}
        images = tuple(still(part[0], part[1], folder / file) for file, part in parts.items())
        return DataSet(name, "image", images, train_on_all(images))
