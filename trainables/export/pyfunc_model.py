"""The exported model as MLflow loads it: from sequences of pictures to features.

An exported model contains this file inside a copy of the package ``trainables.network``, so it imports
nothing else of this project.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import normalize

from trainables.network import images
from trainables.network.embedder import NetworkConfig, SequenceEmbedder

INPUT = "sequences"
"""Name of the input in the model's signature."""
WEIGHTS, NETWORK, FACTS = "weights.safetensors", "network.json", "model.json"

_PIXELS_AT_ONCE = 1 << 21
"""Pixels of frames, at the size of the network, that are encoded at a time, to bound memory."""
_MOST_PIXELS = 1 << 26
"""Largest number of pixels of an encoded frame: a small file can hold a picture that fills the memory."""
_FORMATS = ("JPEG", "PNG")


class InputError(MlflowException, ValueError):
    """Input that is not a list of sequences of pictures; the message is one short line.

    MLflow's server replaces the message by one that begins with the whole input, which may be megabytes. The
    first message therefore stays.
    """

    @property
    def message(self) -> str:
        """The message."""
        return str(self.__dict__["text"])

    @message.setter
    def message(self, text: str) -> None:
        self.__dict__.setdefault("text", text)


class EmbeddingModel:
    """Model from sequences to features; a smaller distance means more likely the same identity.

    Attributes:
        facts: content of ``model.json``: all of the following, and how the model is used.
        name: name in the registry; None if the model was not loaded from a registry.
        version: version in the registry, or None.
        checksum: hash of weights, config and code. Features of two models can be compared only if it is
        equal. dimension: length of a feature. thresholds: distances by false-match rate, calibrated on
        validation identities; may be empty. device: where the network runs.
    """

    def __init__(self, folder: Path) -> None:
        """Build the network from the model's files.

        Raises:
            ValueError: the files differ from those that were exported.
        """
        self.facts: dict[str, Any] = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        self.checksum: str = self.facts["checksum"]
        actual = checksum(folder, self.facts["package"])
        if actual != self.checksum:
            raise ValueError(
                f"{folder}: the checksum is {actual}, not {self.checksum}; the files are damaged"
            )
        self.name, self.version = _registered(folder)
        self.dimension: int = self.facts["dimension"]
        self.thresholds: dict[float, float] = {
            item["false_match_rate"]: item["distance"] for item in self.facts["calibration"]["thresholds"]
        }
        self.config = NetworkConfig.model_validate_json((folder / NETWORK).read_bytes())
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.embedder = SequenceEmbedder(self.config)
        self.embedder.load_state_dict(load_file(folder / WEIGHTS))
        self.embedder.to(self.device).eval()

    def get_raw_model(self) -> "EmbeddingModel":
        """Return this object from the model that MLflow has loaded."""
        return self

    @torch.inference_mode()
    def predict(self, model_input: Any) -> NDArray[np.float32]:
        """Map sequences to features ``[batch, dimension]`` of L2 norm 1, in the order of the sequences.

        Args:
            model_input: a list of sequences of any lengths, or a mapping or table with the list as
                ``sequences``. A sequence is a list of frames of any sizes. A frame is uint8 RGB ``[height,
                width, 3]``, or the content of a JPEG or PNG file as bytes or as base64 text. An array of
                sequences, uint8 ``[batch, time, height, width, 3]``, is a list of them too.

        Raises:
            InputError: the input is something else. Nothing is read from a path or an address.
        """
        features = torch.empty(0, self.dimension, device=self.device)
        for chunk in self._chunks(_sequences(model_input)):
            features = torch.cat([features, self._embed(chunk)])
        return normalize(features).cpu().numpy()

    def _chunks(self, sequences: Sequence[Any]) -> Iterator[list[NDArray[np.uint8]]]:
        """Yield sequences ``[time, height, width, 3]`` of the network's size, a bounded number at a time."""
        chunk: list[NDArray[np.uint8]] = []
        for number, sequence in enumerate(sequences):
            frames = [
                self._frame(frame, number, time) for time, frame in enumerate(_frames(sequence, number))
            ]
            chunk.append(np.stack(frames))
            if sum(map(len, chunk)) >= self._frames_at_once:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

    @property
    def _frames_at_once(self) -> int:
        return max(1, _PIXELS_AT_ONCE // (self.config.height * self.config.width))

    def _frame(self, frame: Any, sequence: int, time: int) -> NDArray[np.uint8]:
        try:
            return images.resize(_picture(frame), self.config.height, self.config.width)
        except ValueError as error:
            raise _refuse(f"sequence {sequence}, frame {time}: {error}") from None

    def _embed(self, sequences: Sequence[NDArray[np.uint8]]) -> Tensor:
        """Map sequences ``[time, height, width, 3]`` to features ``[batch, dimension]``."""
        steps = torch.cat(
            [self.embedder.encode(frames.to(self.device)) for frames in self._inputs(sequences)]
        )
        lengths = np.array([len(sequence) for sequence in sequences])
        ends = np.cumsum(lengths)
        features = torch.empty(len(sequences), self.dimension, device=self.device)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            of_rows = torch.stack([steps[end - length : end] for end in ends[rows]])
            features[rows.tolist()] = self.embedder.aggregate(of_rows)
        return features

    def _inputs(self, sequences: Sequence[NDArray[np.uint8]]) -> Iterator[Tensor]:
        """Yield all frames as ``[frame, 3 or 5, height, width]``, a bounded number at a time.

        RGB is in 0..1, and flow follows if the network has it.
        """
        frames = np.concatenate(sequences)
        flows = np.empty((*frames.shape[:3], 0), np.float16)
        if self.config.flow != "none":
            from trainables.network.flow import optical_flow  # needs OpenCV

            # In half precision, as it is packed for training.
            flows = np.concatenate([optical_flow(sequence).astype(np.float16) for sequence in sequences])
        for start in range(0, len(frames), self._frames_at_once):
            part = slice(start, start + self._frames_at_once)
            colours = np.divide(frames[part], np.float32(255), dtype=np.float32)
            joined = np.concatenate([colours, flows[part].astype(np.float32)], axis=-1)
            yield torch.from_numpy(joined).movedim(-1, 1)


def _load_pyfunc(folder: str) -> EmbeddingModel:
    """Load the model for MLflow, which calls this function."""
    return EmbeddingModel(Path(folder))


def checksum(folder: Path, code: str) -> str:
    """Return the hash of the files that determine a feature: weights, config, and ``code``, itself a hash."""
    digest = hashlib.sha256(code.encode())
    for name in (NETWORK, WEIGHTS):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def _registered(folder: Path) -> tuple[str | None, str | None]:
    """Return name and version, which MLflow notes beside a model that it has downloaded from a registry."""
    for parent in folder.parents[:3]:
        note = parent / "registered_model_meta"
        if note.is_file():
            content = yaml.safe_load(note.read_text(encoding="utf-8"))
            return content.get("model_name"), str(content.get("model_version"))
    return None, None


def _refuse(reason: str) -> InputError:
    error: InputError = InputError.invalid_parameter_value(reason)
    return error


def _sequences(model_input: Any) -> Sequence[Any]:
    """Return the list of sequences of any supported input."""
    if isinstance(model_input, Mapping) or hasattr(model_input, "columns"):
        if INPUT not in model_input:
            raise _refuse(f"no {INPUT!r} in the input; expected {{'{INPUT}': [[frame, ...], ...]}}")
        if others := [str(key) for key in model_input if key != INPUT]:
            raise _refuse(f"unknown key {others[0][:40]!r}; expected {INPUT!r} alone")
        model_input = model_input[INPUT]
    if isinstance(model_input, np.ndarray) and model_input.dtype != object:
        _check_array(model_input, 5, "[batch, time, height, width, 3]")
    elif isinstance(model_input, str | bytes) or not isinstance(model_input, Iterable):
        raise _refuse(f"the input is {_kind(model_input)}; expected a list of sequences")
    sequences = list(model_input)
    if not sequences:
        raise _refuse("the list of sequences is empty")
    return sequences


def _frames(sequence: Any, number: int) -> Any:
    """Return the list of frames of a sequence."""
    where = f"sequence {number}"
    if isinstance(sequence, np.ndarray) and sequence.dtype != object:
        _check_array(sequence, 4, "[time, height, width, 3]", f"{where}: ")
    elif not isinstance(sequence, list | tuple | np.ndarray):
        raise _refuse(f"{where} is {_kind(sequence)}; expected a list of frames: [[frame, ...], ...]")
    if len(sequence) == 0:
        raise _refuse(f"{where} has no frames")
    return sequence


def _check_array(array: NDArray[Any], dimensions: int, expected: str, where: str = "") -> None:
    if array.ndim != dimensions or array.shape[-1] != 3 or array.dtype != np.uint8 or array.size == 0:
        raise _refuse(f"{where}{array.dtype} {list(array.shape)}; expected uint8 RGB {expected}, not empty")


def _picture(frame: Any) -> Image.Image:
    """Return a frame as an RGB image.

    Raises:
        ValueError: it cannot be a picture.
    """
    if isinstance(frame, str):
        if frame.startswith("data:"):
            raise ValueError("a data: address; expected its base64 text alone, which follows the comma")
        try:
            frame = base64.b64decode("".join(frame.split()), validate=True)  # MLflow breaks its lines
        except (binascii.Error, ValueError):
            raise ValueError(
                "a text that is not base64; expected the content of a JPEG or PNG file (paths and addresses"
                " are not read)"
            ) from None
    if isinstance(frame, bytes | bytearray | memoryview):
        try:
            image = images.decode(bytes(frame), _FORMATS, _MOST_PIXELS)
        except ValueError as error:
            raise ValueError(f"{error}; expected the content of a JPEG or PNG file") from None
    else:
        image = Image.fromarray(_pixels(frame))
    images.check_size(image)
    return image


def _pixels(frame: Any) -> NDArray[np.uint8]:
    """Return uint8 RGB ``[height, width, 3]`` of an array, or of nested lists of whole numbers."""
    expected = "expected uint8 RGB [height, width, 3], or the content of a JPEG or PNG file"
    if isinstance(frame, list | tuple):
        try:
            numbers = np.array(frame)
        except ValueError:
            raise ValueError(f"nested lists of different lengths; {expected}") from None
        if numbers.dtype.kind not in "iu" or numbers.size == 0:
            raise ValueError(f"a list of {numbers.dtype} values; {expected}")
        if numbers.min() < 0 or numbers.max() > 255:
            raise ValueError(f"values from {numbers.min()} to {numbers.max()}; expected 0 to 255")
        frame = numbers.astype(np.uint8)
    if not isinstance(frame, np.ndarray):
        raise ValueError(f"{_kind(frame)}; {expected}")
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3 or frame.size == 0:
        raise ValueError(f"{frame.dtype} {list(frame.shape)}; {expected}")
    return np.ascontiguousarray(frame)


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"
