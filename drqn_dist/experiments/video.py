"""Pictures → MP4, by the ffmpeg that imageio-ffmpeg brings along."""

import itertools
import os
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from drqn_dist.errors import RunFolderError

TARGET_SIDE_PX = 480
"""Pictures whose shorter side is smaller are enlarged by the largest whole factor that keeps it within this."""


def write_video(path: Path, pictures: Iterator[npt.NDArray[np.uint8]], pictures_per_s: float) -> None:
    """Writes pictures uint8 [H, W, 3], all of one size and at least one, as H.264 in yuv420p, which every player
    knows; all or nothing.

    Raises:
        RunFolderError: the file could not be written; what was there before stays.
    """
    first = next(pictures)
    height, width = first.shape[:2]
    factor = max(1, TARGET_SIDE_PX // min(height, width))
    # yuv420p halves the colours' resolution, so both sides must be even.
    filters = f"scale=iw*{factor}:ih*{factor}:flags=neighbor,pad=ceil(iw/2)*2:ceil(ih/2)*2"
    temporary = path.with_name(path.name + ".tmp")
    options = {"fps": pictures_per_s, "codec": "libx264", "macro_block_size": 1, "ffmpeg_log_level": "error"}
    output = ["-vf", filters, "-movflags", "+faststart", "-f", "mp4"]
    try:
        # file: keeps a colon in the name from being read as a protocol.
        writer = imageio_ffmpeg.write_frames(f"file:{temporary}", (width, height), output_params=output, **options)
        with closing(writer):
            writer.send(None)
            for picture in itertools.chain([first], pictures):
                writer.send(picture.tobytes())
        imageio_ffmpeg.count_frames_and_secs(str(temporary))  # its last words may have found no room
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise RunFolderError(f"could not write {path}: {str(error).splitlines()[0]}; choose another --video") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
