"""The order of batches and their augmentation."""

import pytest
import torch
from torch import Tensor

from bnexp.data.batches import PADDING, Batches, Order, flip_crop

CPU = torch.device("cpu")


def walk(seed: int, examples: int, batch_size: int, steps: int) -> list[Tensor]:
    order = Order(seed, examples, batch_size)
    return [order.batch(step) for step in range(steps)]


@pytest.mark.parametrize(("examples", "batch_size"), [(20, 5), (20, 7), (13, 4), (7, 7), (9, 1), (10, 6)])
def test_every_example_once_an_epoch_and_no_batch_short(examples: int, batch_size: int) -> None:
    epochs = 3
    steps = -(-epochs * examples // batch_size)
    batches = walk(0, examples, batch_size, steps)
    assert all(len(batch) == batch_size for batch in batches)
    stream = torch.cat(batches)
    for epoch in range(epochs):
        seen = stream[epoch * examples : (epoch + 1) * examples]
        assert seen.sort().values.tolist() == list(range(examples))


def test_epochs_are_shuffled_apart() -> None:
    first, second = walk(0, 50, 50, 2)
    assert not torch.equal(first, second)
    assert not torch.equal(first, torch.arange(50))


@pytest.mark.parametrize("step", [0, 1, 3, 4, 5, 17, 40])
def test_a_step_asked_for_directly_equals_walking_there(step: int) -> None:
    assert torch.equal(Order(4, 23, 6).batch(step), walk(4, 23, 6, step + 1)[-1])


def test_steps_can_be_asked_for_in_any_order() -> None:
    order, expected = Order(4, 23, 6), walk(4, 23, 6, 9)
    for step in (8, 3, 3, 0, 7, 4):
        assert torch.equal(order.batch(step), expected[step])


def test_order_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = walk(0, 23, 6, 5)
    torch.manual_seed(2)
    assert all(torch.equal(a, b) for a, b in zip(first, walk(0, 23, 6, 5), strict=True))
    assert not torch.equal(torch.cat(first), torch.cat(walk(1, 23, 6, 5)))


def test_the_shuffle_of_an_epoch_does_not_depend_on_the_batch_size() -> None:
    assert torch.equal(torch.cat(walk(3, 24, 6, 8)), torch.cat(walk(3, 24, 8, 6)))


@pytest.mark.parametrize("augment", [False, True])
def test_arms_get_equal_batches(augment: bool) -> None:
    """In another stack and at another place."""
    one = Batches([5, 7], 40, 8, augment, CPU)
    two = Batches([1, 2, 5], 40, 8, augment, CPU)
    for step in range(12):
        mine, other = one.batch(step), two.batch(step)
        assert mine.index.shape == (2, 8)
        assert torch.equal(mine.index[0], other.index[2])
        assert not torch.equal(mine.index[0], mine.index[1])
        if augment:
            assert mine.crop is not None
            assert other.crop is not None
            assert torch.equal(mine.crop[0], other.crop[2])
        else:
            assert mine.crop is None


def test_crops_take_every_place_and_both_sides() -> None:
    crop = Batches([0], 4096, 4096, True, CPU).batch(0).crop
    assert crop is not None
    rows, columns, flips = (torch.bincount(crop[0, :, column]) for column in range(3))
    for counts in (rows, columns):
        assert len(counts) == 2 * PADDING + 1
        assert int(counts.min()) > 0.75 * 4096 / 9
    assert len(flips) == 2
    assert int(flips.min()) > 0.45 * 4096


def test_crops_change_from_step_to_step() -> None:
    batches = Batches([0], 32, 8, True, CPU)
    first, second = batches.batch(0).crop, batches.batch(1).crop
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)


def slow_flip_crop(image: Tensor, row: int, column: int, flip: int) -> Tensor:
    """One image (C, H, W), pixel by pixel."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            from_y, from_x = y + row - PADDING, (width - 1 - x if flip else x) + column - PADDING
            if 0 <= from_y < height and 0 <= from_x < width:
                result[:, y, x] = image[:, from_y, from_x]
    return result


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 5, 9), (1, 12, 6)], ids=str)
def test_flip_crop_equals_a_slow_reference(shape: tuple[int, int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    crop = Batches([0], 24, 24, True, CPU).batch(0).crop
    assert crop is not None
    crop = crop[0]
    crop[0], crop[1] = torch.tensor([0, 8, 1]), torch.tensor([8, 0, 0])  # the corners
    images = torch.randint(1, 256, (24, *shape), generator=random, dtype=torch.uint8)
    expected = torch.stack([slow_flip_crop(image, *place.tolist()) for image, place in zip(images, crop, strict=True)])
    result = flip_crop(images, crop)
    assert result.dtype == torch.uint8
    assert torch.equal(result, expected)


def test_the_middle_crop_is_the_image_itself() -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).reshape(2, 3, 4, 5)
    crop = torch.tensor([[PADDING, PADDING, 0], [PADDING, PADDING, 1]])
    result = flip_crop(images, crop)
    assert torch.equal(result[0], images[0])
    assert torch.equal(result[1], images[1].flip(-1))


def test_what_is_drawn_ahead_is_what_each_step_draws() -> None:
    """Of any step, also after members have left."""
    batches = Batches([3, 4, 5], 23, 6, True, CPU)
    one, last = Order(3, 23, 6), Order(5, 23, 6)
    for step in (0, 1, 70, 3, 64, 200):
        assert torch.equal(batches.batch(step).index[0], one.batch(step))
    batches.keep([2])
    assert torch.equal(batches.batch(200).index, last.batch(200)[None])
    assert torch.equal(last.batches(2, 9), torch.stack(walk(5, 23, 6, 11)[2:]))
