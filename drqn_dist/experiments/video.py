"""Pictures → MP4, by the ffmpeg that imageio-ffmpeg brings along."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

from drqn_dist.errors import ConfigError, RunFolderError

TARGET_SIDE_PX = 480
"""Pictures whose shorter side is smaller are enlarged by the largest whole factor that keeps it within this."""


def write_video(path: Path, pictures: Iterator[npt.NDArray[np.uint8]], pictures_per_s: float) -> None:
    """Writes pictures uint8 [H, W, 3], all of one size and at least one, as H.264 in yuv420p, which every player
    knows; all or nothing.

    Raises:
        ConfigError: its name does not end in .mp4.
        RunFolderError: the file could not be written; what was there before stays.
    """
    if path.suffix.lower() != ".mp4":
        raise ConfigError(f"--video is {path}, but what is written is an MP4 file; give it a name that ends in .mp4")
    first = next(pictures)
    temporary = path.with_name(path.name + ".tmp")
    try:
        ffmpeg = _start_ffmpeg(temporary, first.shape[0], first.shape[1], pictures_per_s)
        try:
            assert ffmpeg.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # ffmpeg gave up; its message says why
                ffmpeg.stdin.write(first.tobytes())
                for picture in pictures:
                    ffmpeg.stdin.write(picture.tobytes())
            message = ffmpeg.communicate()[1].decode(errors="replace")
        except BaseException:
            ffmpeg.kill()
            ffmpeg.communicate()
            raise
        if ffmpeg.returncode:
            raise RunFolderError(
                f"could not write {path}: {' '.join(message.split()) or 'ffmpeg failed'}; choose another --video"
            )
        os.replace(temporary, path)
    except OSError as error:
        raise RunFolderError(f"could not write {path}: {error.strerror}; choose another --video") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _start_ffmpeg(out: Path, height_px: int, width_px: int, pictures_per_s: float) -> subprocess.Popen[bytes]:
    factor = max(1, TARGET_SIDE_PX // min(height_px, width_px))
    # yuv420p halves the colours' resolution, so both sides must be even.
    filters = f"scale=iw*{factor}:ih*{factor}:flags=neighbor,pad=ceil(iw/2)*2:ceil(ih/2)*2"
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width_px}x{height_px}", "-r", str(pictures_per_s), "-i", "-"]
    encoded = ["-vf", filters, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4"]
    # file: keeps a colon in the name from being read as a protocol.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *raw, *encoded, f"file:{out}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
