"""facial-service: a photo of a face and its landmarks in, labelled face regions out."""

import os
from pathlib import Path

__version__ = "0.1.0"
PACKAGE_MODELS = Path(__file__).parent / "models"  # where the face-detection models are installed by default

# Native libraries read these once, when they are loaded. Importing any part of the package runs this first, so no
# import order can miss it. Parallelism comes from worker processes; a thread pool inside each would only compete.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The last line of defence behind the pixel limit that is checked in the header: cv2 refuses to decode more.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(100_000_000))
