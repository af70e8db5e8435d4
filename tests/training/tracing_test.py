import threading

import pytest
import tensorflow as tf

from sivdnas_tf.training.tracing import AheadTracer

ONE = tf.constant(1.0)


def test_one_function_runs_while_the_next_is_traced():
    second_traced = threading.Event()

    def waiting(value):
        assert second_traced.wait(60.0)
        return value

    @tf.function
    def first(value):
        return tf.py_function(waiting, [value], tf.float32)

    @tf.function
    def second(value):
        second_traced.set()
        return 2.0 * value

    with AheadTracer() as tracer:
        tracer.trace([first, second], ONE)
        tracer.wait(first)
        assert float(first(ONE)) == 1.0
        tracer.wait(second)
        assert float(second(ONE)) == 2.0


def test_functions_are_traced_once_in_the_order_asked_for():
    traced = []

    def function(name):
        @tf.function(autograph=False)
        def named(value):
            traced.append(name)
            return value

        return named

    first, second, other = map(function, ("first", "second", "other"))
    with AheadTracer() as tracer:
        tracer.trace([first, second], ONE)
        tracer.trace([second, first], ONE)
        for each in (second, first, other):
            tracer.wait(each)
            each(ONE)
    assert traced == ["first", "second", "other"]


def test_what_tracing_raises_is_raised_where_it_is_waited_for():
    @tf.function(autograph=False)
    def wrong(value):
        raise RuntimeError("no graph of this")

    with AheadTracer() as tracer:
        tracer.trace([wrong], ONE)
        with pytest.raises(RuntimeError, match="no graph of this"):
            tracer.wait(wrong)


def test_what_is_still_waiting_when_a_run_ends_is_not_traced():
    traced, begun, go_on = [], threading.Event(), threading.Event()

    @tf.function(autograph=False)
    def slow(value):
        begun.set()
        assert go_on.wait(60.0)
        return value

    @tf.function(autograph=False)
    def never(value):
        traced.append(value)
        return value

    with AheadTracer() as tracer:
        tracer.trace([slow, never], ONE)
        assert begun.wait(60.0)
        threading.Timer(0.2, go_on.set).start()
    assert not traced
