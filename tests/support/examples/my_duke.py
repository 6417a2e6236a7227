"""my_duke.py: python my_duke.py DukeMTMC-VideoReID duke"""

import json
import re
import sys
from pathlib import Path

source, target = (Path(argument).absolute() for argument in sys.argv[1:])
split = {"train": [], "query": [], "gallery": []}
for part in split:
    for tracklet in sorted((source / part).glob("*/*")):
        frame = next(tracklet.iterdir()).name  # 0001_C6_F0001_X30823.jpg: identity 1, camera 6
        camera = "c" + re.search(r"C(\d+)", frame)[1]
        item = Path(tracklet.parent.name, camera, f"{part}-{tracklet.name}")
        link = target / "sequences" / item
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # of an earlier run
        link.symlink_to(tracklet)
        split[part].append(str(item))
(target / "official.json").write_text(json.dumps([split]))
