"""The attention to two texts at once against two attentions, and what it asks of a kernel."""

import pytest
import torch
from kleinkit.guidance.merged_attention import kernel, merged, to_both
from torch.nn.functional import scaled_dot_product_attention

HEADS, WIDTH = 3, 16
NEGATIVE, POSITIVE, IMAGE, CACHED = 5, 7, 40, 11


def tensors(batch=2, more=0, dtype=torch.float32, size=1.0):
    """Queries, keys and values of both texts and the image, as the model has them: slices of one tensor."""
    tokens = NEGATIVE + POSITIVE + IMAGE
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, tokens + more, 3, HEADS, WIDTH, generator=generator).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.double()
    return [one.to(dtype) for one in (q[:, :, :tokens] * size, k * size, v)]


def two(q, k, v):
    """The positive's text with the image, and the negative's text and the image with it: two attentions."""

    def attention(without):
        q_, k_, v_ = (torch.cat((t[:, :, : without.start], t[:, :, without.stop :]), dim=2) for t in (q, k, v))
        return scaled_dot_product_attention(q_, k_, v_).transpose(1, 2).flatten(2)

    negative = attention(slice(NEGATIVE, NEGATIVE + POSITIVE))
    return attention(slice(0, NEGATIVE)), negative[:, :NEGATIVE], negative[:, NEGATIVE:]


def both(q, k, v):
    return to_both(kernel(q, k, v), q, k, v, NEGATIVE, POSITIVE)


@pytest.mark.parametrize("more", [0, CACHED], ids="{} keys more".format)
@pytest.mark.parametrize("batch", [1, 2])
def test_it_is_two_attentions(batch, more):
    q, k, v = tensors(batch, more)
    for ours, theirs in zip(both(q, k, v), two(q.double(), k.double(), v.double()), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= 1e-6


@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 2**-7), (torch.float16, 2**-10)], ids=str)
def test_low_precision_is_within_its_rounding(dtype, limit):
    q, k, v = tensors(dtype=dtype)
    for ours, theirs in zip(both(q, k, v), two(q.double(), k.double(), v.double()), strict=True):
        assert ours.dtype == dtype
        assert (ours - theirs).abs().max() <= limit * theirs.abs().max()


@pytest.mark.parametrize("size", [1e-3, 30.0, 300.0])
def test_extreme_scores(size):
    """Where a score's own rounding is large, it is no larger here than in the two attentions."""
    q, k, v = tensors(size=size)
    for ours, theirs, exact in zip(both(q, k, v), two(q, k, v), two(q.double(), k.double(), v.double()), strict=True):
        assert (ours - exact).abs().max() <= 1e-6 + 2 * (theirs - exact).abs().max()


def test_one_part_outweighs_the_other():
    outputs = torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 2, 4)
    least, most = torch.tensor([[[-3e38, 0.0]]]), torch.tensor([[[3e38, 0.0]]])
    out = merged((outputs[0], least), (outputs[1], most))
    assert out[0, 0, :, 0].tolist() == [1.0, 0.5]


def test_no_pair_of_key_and_query_comes_twice():
    """With values that are one-hot of their key, an output is not zero where the query saw the key."""
    q, k, v = tensors(batch=1)
    pairs, seen = 0, torch.zeros(q.shape[2], k.shape[2], dtype=torch.int64)
    inner = kernel(q, k, v)

    def counted(q, k, v):
        nonlocal pairs
        pairs += q.shape[2] * k.shape[2]
        rows, columns = q[0, 0, :, 0].long(), k[0, 0, :, 0].long()
        seen[rows[:, None], columns] += 1
        return inner(q, k, v)

    # The first channel of a query and of a key says which it is.
    for tensor in (q, k):
        tensor[..., 0] = torch.arange(tensor.shape[2], dtype=tensor.dtype)
    to_both(counted, q, k, v, NEGATIVE, POSITIVE)
    text = NEGATIVE + POSITIVE
    needed = torch.ones_like(seen)
    needed[:NEGATIVE, NEGATIVE:text] = needed[NEGATIVE:text, :NEGATIVE] = 0
    assert torch.equal(seen, needed)
    assert pairs == IMAGE**2 + 2 * IMAGE * text + NEGATIVE**2 + POSITIVE**2
    assert pairs == (IMAGE + POSITIVE) ** 2 + (IMAGE + NEGATIVE) ** 2 - IMAGE**2


@pytest.mark.parametrize("what", ["width", "gradient", "dtype", "device"])
def test_where_no_kernel_fits_there_is_none(what):
    q, k, v = tensors()
    if what == "width":
        q, k, v = (tensor[..., :-1] for tensor in (q, k, v))
    elif what == "gradient":
        v.requires_grad_()
    elif what == "dtype":
        v = v.bfloat16()
    else:
        q, k, v = (tensor.to("meta") for tensor in (q, k, v))
    assert kernel(q, k, v) is None


@pytest.mark.parametrize("name", ["flash", "efficient"])
def test_what_cudas_kernels_are_called_with_and_give(name):
    """Their shapes as torch knows them without a GPU: of the efficient one's lse some queries are padding."""
    from kleinkit.guidance import merged_attention
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        q, k, v = torch.empty(2, NEGATIVE + POSITIVE + IMAGE, 3, HEADS, WIDTH, device="cuda", dtype=torch.bfloat16).permute(
            2, 0, 3, 1, 4
        )
        positive, text, image = to_both(getattr(merged_attention, name), q, k, v, NEGATIVE, POSITIVE)
        assert [out.shape[1] for out in (positive, text, image)] == [POSITIVE + IMAGE, NEGATIVE, IMAGE]
        assert {(out.shape[0], out.shape[2], out.dtype, out.device.type) for out in (positive, text, image)} == {
            (2, HEADS * WIDTH, torch.bfloat16, "cuda")
        }
