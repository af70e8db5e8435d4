"""Functions traced in a thread, so that one starts while the next is traced.

Tracing is Python; what TensorFlow then does before a function first runs, optimizing and instantiating it, is C++ that leaves Python free.
"""

import concurrent.futures


class AheadTracer:
    """Traces `tf.function`s one after the other, in the order asked for. A context manager: leaving it ends the thread."""

    def __init__(self):
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tracing")
        self._futures = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown(cancel_futures=True)

    def trace(self, functions, *arguments):
        """Begins to trace those of `functions` that were not asked for yet, for calls with tensors like `arguments`; returns at once."""
        for function in functions:
            if function not in self._futures:
                self._futures[function] = self._pool.submit(function.get_concrete_function, *arguments)

    def wait(self, function):
        """Returns when `function` is traced; raises what tracing raised. Returns at once for one that `trace` never got."""
        if function in self._futures:
            self._futures[function].result()
