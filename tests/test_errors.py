"""The errors: one root, each with a text, a remedy and a way between processes."""

import copy
import inspect
import pickle

import pytest

from eventseal import errors
from eventseal.errors import EventSealError

CLASSES = [
    value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, EventSealError)
]


@pytest.mark.parametrize("error_class", CLASSES)
def test_an_error_has_a_remedy_and_keeps_everything_on_its_way_to_another_process(error_class):
    error = error_class("key 1 is gone", remedy="Do this.", key_id=1)
    for travelled in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(travelled) is error_class
        assert (str(travelled), travelled.remedy, travelled.key_id) == ("key 1 is gone", "Do this.", 1)
    assert error_class("text").remedy == error_class.default_remedy
    assert error_class.default_remedy.endswith(".")


def test_every_name_ends_in_error_and_is_exported():
    assert all(error_class.__name__.endswith("Error") for error_class in CLASSES)
    exported = {name for name in errors.__all__ if name.endswith("Error")}
    assert exported == {error_class.__name__ for error_class in CLASSES}


@pytest.mark.parametrize(
    ("error_class", "also"),
    [
        (errors.ConfigurationError, ValueError),
        (errors.SerializationError, TypeError),
        (errors.ItemNotFoundError, LookupError),
    ],
)
def test_some_errors_are_the_languages_own_as_well(error_class, also):
    assert issubclass(error_class, also)


def test_what_the_caller_does_next_splits_the_tree():
    """No handler for one kind catches another: an outage is no tampering, a refusal no erasure."""
    kinds = [cls for cls in CLASSES if cls.__base__ is EventSealError or EventSealError in cls.__bases__]
    for one in kinds:
        for other in kinds:
            assert one is other or not issubclass(one, other)
