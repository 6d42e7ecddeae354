"""Video: files to clips on the device, shared by the papers that learn from video.

Reading (`reading.py`, PyAV, whose wheels bring FFmpeg):

    index = index_video(path, expect_fps=None)       # frame rate, frame count, key frames; no frame is decoded
    with VideoReader(index, size=128) as reader:     # or a path; size: short side, (height, width), or None
        frames_TCHW = reader.read([0, 4, 8, 12])     # uint8; colour="gray" gives one channel
    save_indexes(path, indexes); load_indexes(path)  # many files' indexes in one Parquet file

`read` seeks to the key frame before what it wants and decodes forward, once for all frames that it was asked for; so
ask for all clips of a file in one call. What is wrong with a file (no video, truncated, no frames, another frame rate,
a damaged frame) is a `VideoError` of one line.

Bad files (`bad_files.py`): a data set's `on_bad` says `skip` or `refuse`.

    bad = BadFiles("skip")
    for path in paths:
        with bad.tolerated():                        # `refuse` raises the first VideoError
            indexes.append(index_video(path))
    bad.reasons                                      # one line for each skipped file; its length goes into the report

Writing (`writing.py`): `encode_video(frames_TCHW, fps)`, the bytes of a lossless MP4 (H.264; three channels or one),
the same bytes whenever the frames are the same. For generated data and tests.

Which frames (`sampling.py`), all returning int64 arrays: `timestamp_frame_indices` (a stretch in seconds),
`interval_frame_indices` (the i-th of n views), `segment_frame_indices` (one of each of n equal parts; random with a
generator, else the middle one).

Augmentation on the device (`augment.py`), a batch of clips at a time, every factor constant over a clip's frames:

    augment = ClipAugment(size=112, area=(0.32, 0.58), flip=0.5, jitter=Jitter(0.8, brightness=0.8, ...))
    draws = augment.draw(len(clips), generator)      # on the CPU, from (seed, step): the same on every device
    x_BCTHW = augment(clips_BTCHW, draws)            # uint8 in, float32 out, normalised
    depth_BCTHW = depth_augment(depth_BTCHW, draws)  # a partner with the same crop, flip and rotation
    x_BCTHW = centre_crop(clips_BTCHW, size=112)     # for testing

Looking at clips (`strips.py`): `write_gif` and `write_strip` (PNG), for MLflow artifacts.

Letters of tensor names: B clips, T frames of a clip, C channels, H height, W width, F frames of a file.
"""
