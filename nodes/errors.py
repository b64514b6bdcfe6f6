"""Errors that say which node they come from."""

import functools
from contextlib import contextmanager


@contextmanager
def in_node(node_id):
    """A `ValueError` inside begins with the node's id."""
    try:
        yield
    except ValueError as error:
        # Its traceback alone: ComfyUI logs it.
        raise ValueError(f"{node_id}: {error}").with_traceback(error.__traceback__) from None


def names_itself(node):
    """Class decorator: a `ValueError` of the node's `execute` begins with the node's id."""
    execute = node.execute.__func__

    @functools.wraps(execute)
    def named(cls, *args, **kwargs):
        with in_node(node.__name__):
            return execute(cls, *args, **kwargs)

    node.execute = classmethod(named)
    return node


def no_choice(name, choices):
    """What `validate_inputs` answers when a DynamicCombo is missing in its arguments.

    ComfyUI does not check one: of a value that is not in the list, nothing reaches the node.
    """
    return f"Expected `{name}` to be one of {', '.join(choices)}, but got none of them."
