"""Where a bilevel step's time goes, by TensorFlow's profiler: a JSON line a kind of kernel, dearest first.

    python benchmarks/step_profile.py                                 # the full DARTS size, every gate open
    python benchmarks/step_profile.py --channels=4 --cells=3 --batch_size=32 --resolution=8

Milliseconds are a step's, summed over the threads, without what a kernel waits for others in it; the last line is the sum.
"""

import argparse
import collections
import glob
import json
import tempfile

from search_step import build, compiled_step

STEPS = 3


def arguments():
    """The parsed command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("channels", 16), ("cells", 8), ("batch_size", 64), ("resolution", 32), ("rows", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--keep_probability", type=float, default=1.0)
    parser.add_argument("--recompute", action="store_true", help="search.recompute")
    return parser.parse_args()


def self_times(directory):
    """Picoseconds and number of events by kind of kernel, from the profile that was written to `directory`."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    (path,) = glob.glob(f"{directory}/plugins/profile/*/*.xplane.pb")
    with open(path, "rb") as file:
        space.ParseFromString(file.read())
    times, counts = collections.Counter(), collections.Counter()
    for plane in space.planes:
        if "CPU" not in plane.name:
            continue
        for line in plane.lines:
            stack = []
            for event in sorted(line.events, key=lambda event: (event.offset_ps, -event.duration_ps)):
                # A kernel's event is called "name:Kind", what follows '#' is about the call; the runtime's own events have no colon.
                name = plane.event_metadata[event.metadata_id].name.split("#")[0]
                kind = name.split(":")[-1] if ":" in name else "(runtime)"
                while stack and stack[-1][0] <= event.offset_ps:
                    stack.pop()
                if stack:
                    times[stack[-1][1]] -= event.duration_ps
                times[kind] += event.duration_ps
                counts[kind] += 1
                stack.append((event.offset_ps + event.duration_ps, kind))
    return times, counts


def profile_steps(size):
    """`self_times` of `STEPS` steps after a first one."""
    import tensorflow as tf

    supernet = build(size, size.keep_probability)
    _, step = compiled_step(supernet)
    shape = (size.batch_size, size.resolution, size.resolution, 3)
    data = tuple((tf.random.normal(shape), tf.zeros([size.batch_size], tf.int32)) for _ in range(2))
    step(data)
    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        for _ in range(STEPS):
            step(data)
        tf.profiler.experimental.stop()
        return self_times(directory)


def main():
    """Prints the profile."""
    size = arguments()
    from sivdnas_tf.quiet import import_tensorflow

    import_tensorflow()
    from sivdnas_tf.training.distribution import functions_as_written

    with functions_as_written():  # as the search itself runs
        times, counts = profile_steps(size)
    for kind in ("(runtime)", "Run"):  # mostly a thread that waits
        times.pop(kind, None)
    for kind, picoseconds in times.most_common(size.rows):
        print(json.dumps({"kernel": kind, "milliseconds": round(picoseconds / 1e9 / STEPS, 2), "count": counts[kind] // STEPS}))
    print(json.dumps({"sum_milliseconds": round(sum(times.values()) / 1e9 / STEPS, 2)}))


if __name__ == "__main__":
    main()
