"""KleinKitSweep and KleinKitContactSheet in the real ComfyUI."""

import pytest
import torch


def test_a_sweep_is_three_lists(comfy, run_node):
    node = comfy.NODE_CLASS_MAPPINGS["KleinKitSweep"]
    assert run_node("KleinKitSweep", values="1, 4:8:2") == ([1.0, 4.0, 6.0, 8.0], ["1", "4", "6", "8"], [1, 4, 6, 8])
    assert node.OUTPUT_IS_LIST == [True, True, True] and node.RETURN_TYPES == ["FLOAT", "STRING", "INT"]


def test_what_is_no_whole_number_stops_only_what_needs_one(run_node):
    numbers, labels, whole = run_node("KleinKitSweep", values="1, 2.5")
    assert (numbers, labels) == ([1.0, 2.5], ["1", "2.5"])
    assert whole[0] == 1 and type(whole[0]) is int
    assert whole[1].message == "Klein Sweep: Expected `values` to be whole numbers for this input, but got 2.5."


def test_values_are_checked_before_the_prompt_runs(comfy):
    node = comfy.NODE_CLASS_MAPPINGS["KleinKitSweep"]
    assert node.validate_inputs(values="1:3") is True
    assert "ranges whose step leads from start to end" in node.validate_inputs(values="1:10:-1")
    assert node.validate_inputs() is True


def test_a_sheet_takes_whole_lists(comfy, run_node):
    assert comfy.NODE_CLASS_MAPPINGS["KleinKitContactSheet"].INPUT_IS_LIST is True
    pictures = [torch.full((1, 128, 128, 3), 0.5), torch.full((2, 64, 128, 3), 0.25)]
    [page] = run_node("KleinKitContactSheet", images=pictures, labels=["<b>1</b>", "2"], columns=[2], title=["cfg"])
    assert page.shape[0] == 1 and page.shape[2] == 2 * 128 + 3 * 7
    assert int((page[0] == 0.5).all(-1).sum()) == 128 * 128 and int((page[0] == 0.25).all(-1).sum()) == 2 * 64 * 128


def test_an_error_names_the_node(run_node):
    with pytest.raises(ValueError, match="^Klein Contact Sheet: Expected `labels` to be no more than the 1 pictures"):
        run_node("KleinKitContactSheet", images=[torch.zeros(1, 8, 8, 3)], labels=["1", "2"], columns=[4], title=[""])
