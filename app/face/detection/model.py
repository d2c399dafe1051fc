"""A model, run by LiteRT. The only module that imports LiteRT."""

import cv2
import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from app.face.frame import ByteArray


class Model:
    """A model that maps a square image to arrays, run on the calling thread. Not thread-safe.

    Raises:
        ValueError: the file cannot be read, is no model, or lacks one of the outputs.
    """

    def __init__(self, path: str, outputs: tuple[str, ...], low: float = 0.0) -> None:
        """Load a model whose input has the values ``low`` to 1, and whose named outputs are wanted."""
        # LiteRT runs supported operators with XNNPACK, which starts no thread for num_threads=1.
        self._interpreter = Interpreter(model_path=path, num_threads=1)
        self._interpreter.allocate_tensors()
        (self._input,) = (detail["index"] for detail in self._interpreter.get_input_details())
        indices = {detail["name"]: detail["index"] for detail in self._interpreter.get_output_details()}
        if missing := set(outputs) - set(indices):
            raise ValueError(f"{path}: expected the outputs {', '.join(outputs)}, got none named {missing.pop()}")
        self._outputs = [indices[name] for name in outputs]
        self._scale, self._low = np.float32((1 - low) / 255), np.float32(low)

    def run(self, image_bgr: ByteArray) -> list[npt.NDArray[np.float32]]:
        """Run the model on an image of its input size ``(side, side, 3)``, and return copies of the outputs."""
        values = np.multiply(cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB), self._scale, dtype=np.float32)
        if self._low:
            values += self._low
        self._interpreter.set_tensor(self._input, values[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(index) for index in self._outputs]
