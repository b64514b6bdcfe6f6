"""Errors that say which node they come from."""

import functools


def names_itself(node):
    """Class decorator: a `ValueError` of the node's `execute` begins with the node's id."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def named(cls, *args, **kwargs):
        try:
            return execute(cls, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{cls.GET_SCHEMA().node_id}: {error}") from error

    node.execute = classmethod(named)
    return node
