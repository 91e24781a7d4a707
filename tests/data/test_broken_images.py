"""Images that cannot be read: what is said of each, how many may be, and the list of them."""

import pytest

from imagegpt.data.broken_images import BrokenImage, check_broken, list_of


def broken(num, message="x"):
    return [BrokenImage(index=k, name=f"{k}.png", trouble="unreadable", message=message) for k in range(num)]


@pytest.mark.parametrize(("num", "share"), [(0, 0), (5, 0.05), (1, 0.01), (99, 1)])
def test_as_many_as_the_share_may_be_broken(num, share):
    check_broken(broken(num), 100, "images of photos", share)


def test_more_are_refused():
    with pytest.raises(ValueError, match="are broken") as caught:
        check_broken(broken(6), 100, "images of photos", 0.05)
    assert str(caught.value) == (
        "6 of 100 images of photos are broken and 5 % may be (0.png is unreadable; 1.png is unreadable; "
        "2.png is unreadable; and 3 more): repair or remove them, or raise max_broken"
    )
    with pytest.raises(ValueError, match=r"^1 of 2 images are broken and 0 % may be \(0\.png is unreadable\): repair"):
        check_broken(broken(1), 2, "images", 0)
    with pytest.raises(ValueError, match=r"^none of the 2 images can be read: 0\.png is unreadable; 1\.png is unr"):
        check_broken(broken(2), 2, "images", 1)


def test_running_out_of_memory_is_a_sentence():
    """numpy's own error says something of shapes and data types."""
    for error in (MemoryError(), MemoryError("Unable to allocate 7 GiB for an array with shape (9,)")):
        one = BrokenImage.of(3, "cat/3.png", error)
        assert (one.index, one.name, one.trouble) == (3, "cat/3.png", "huge")
        assert one.message == "cat/3.png needs more memory than there is: shrink the image first"


def test_a_list_has_a_line_each_whatever_the_names():
    one = BrokenImage.of(0, "a\tb\n\udcff.png", ValueError("it is\nbroken"))
    assert list_of([one, *broken(1)]) == b"a\\tb\\n\\xff.png\tunreadable\tit is broken\n0.png\tunreadable\tx\n"
