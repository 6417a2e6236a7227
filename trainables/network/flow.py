"""Dense optical flow between the frames of a sequence. Needs OpenCV, so import it only if flow is used."""

import cv2
import numpy as np
from numpy.typing import NDArray


def optical_flow(frames: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the DIS flow (Kroeger et al., ECCV 2016) of RGB frames ``[time, height, width, 3]``.

    The result is ``[time, height, width, 2]``, (right, down) in pixels. Step t leads from frame t to frame
    t + 1; the last step repeats the one before it. The flow of a single frame is 0.
    """
    flow: NDArray[np.float32] = np.zeros((*frames.shape[:3], 2), np.float32)
    grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]
    search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    for t in range(len(frames) - 1):
        search.calc(grey[t], grey[t + 1], flow[t])
    if len(frames) > 1:
        flow[-1] = flow[-2]
    return flow
