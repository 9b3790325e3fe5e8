"""What an entity marks as personal data is sealed in its first event too, or refused."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from eventseal.errors import ConfigurationError
from eventseal.eventstore import VersionedEntity
from eventseal.eventstore.field_survey import survey
from eventseal.items import PersonalData, SequencedItemMapper, register_topic

OfStream = Annotated[str, PersonalData(subject="originator_id")]


class InConstructor(VersionedEntity):
    def __init__(self, *, email: OfStream, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._email = email


class InBody(VersionedEntity):
    _email: OfStream

    def __init__(self, *, email: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._email = email


class Declared(VersionedEntity):
    __personal_data__ = {"email": "_contact"}  # noqa: RUF012
    _contact: OfStream

    def __init__(self, *, email: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._contact = email


class Both(InBody):
    class Created(VersionedEntity.Created):
        email: OfStream


class Later(VersionedEntity):
    _email: OfStream

    def __init__(self, *, plan: str, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.plan = plan
        self._email = ""


for one in (InConstructor, InBody, Declared, Both, Later):
    register_topic(f"tests.marked_entities:{one.__name__}", one)


@pytest.mark.parametrize("cls", [InConstructor, InBody, Declared], ids=lambda cls: cls.__name__)
def test_an_entity_whose_first_event_would_show_personal_data_is_refused(cls):
    with pytest.raises(
        ConfigurationError, match=r"'email' of .* holds personal data, which .*Created"
    ) as caught:
        cls.create(email="ann@example.org")
    assert "ann@example.org" not in str(caught.value)
    assert "Created in the entity's class" in caught.value.remedy


@pytest.mark.parametrize(("cls", "given"), [(Both, {"email": "a"}), (Later, {"plan": "free"})])
def test_an_entity_whose_first_event_shows_none_is_fine(cls, given):
    assert cls.create(**given)._email in {"a", ""}


def test_the_survey_says_so_too():
    found = {one.name.rpartition(".")[2]: one.refused for one in survey([__name__], mapper_of=mapper_of)}
    refused = {name.rpartition(":")[2] for name, why in found.items() if why is not None}
    assert refused == {"InConstructor", "InBody", "Declared"}


def mapper_of(_: type[Any]) -> type[SequencedItemMapper]:
    return SequencedItemMapper
