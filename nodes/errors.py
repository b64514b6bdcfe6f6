"""Errors that say which node they come from."""

import functools
from contextlib import contextmanager


@contextmanager
def in_node(node_id):
    """A `ValueError` inside begins with the node's id."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{node_id}: {error}") from error


def names_itself(node):
    """Class decorator: a `ValueError` of the node's `execute` begins with the node's id."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def named(cls, *args, **kwargs):
        with in_node(node.__name__):
            return execute(cls, *args, **kwargs)

    node.execute = classmethod(named)
    return node
