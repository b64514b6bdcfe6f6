"""Which ComfyUI the pack takes."""

import logging

import pytest
from kleinkit import compat


@pytest.mark.parametrize("version", ["0.33.0", "0.46.0", "1.0.0", "0.30.1"])
def test_a_newer_comfyui_logs_one_line(caplog, version):
    caplog.set_level(logging.INFO)
    assert compat.is_new_enough(version)
    [record] = caplog.records
    assert record.levelno == logging.INFO and version in record.getMessage() and compat.NEWEST_TESTED in record.getMessage()


@pytest.mark.parametrize("version", [compat.OLDEST, "0.24.1", compat.NEWEST_TESTED, None])
def test_a_tested_comfyui_logs_nothing(caplog, version):
    caplog.set_level(logging.INFO)
    assert compat.is_new_enough(version)
    assert not caplog.records


def test_an_older_comfyui_is_refused_with_one_warning(caplog):
    assert not compat.is_new_enough("0.16.2")
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
