"""
Find the attributes of an entity that hold personal data.

Snapshots encrypt these attributes. The annotations of the entity and of its events name them: the field
``email`` of an event is kept in the attribute ``email`` or ``_email``. If a field is kept under another name,
or not at all, the entity class declares it: ``__personal_data__ = {"email": "_contact", "note": None}``. A
field without any such explanation is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eventseal.errors import ConfigurationError
from eventseal.eventstore.events import DomainEvent
from eventseal.items.json_writer import ObjectState, Refused
from eventseal.items.markers import Masked, PersonalData, Sealed, fits, personal_data_in, with_masks
from eventseal.items.objects import attributes_of
from eventseal.items.personal import marked_names, plan_of
from eventseal.items.sealed_fields import Enclosing, find_subject, subject_scope
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from eventseal.items.markers import Shape

DECLARATION = "__personal_data__"
"""
The attribute of an entity class that declares its personal data.

It says where the entity keeps the personal data of its events.
"""

NO_SUBJECTS: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class _Kept:
    """A field of the entity's events, and the attribute that keeps it."""

    field: str
    attribute: str
    shape: Shape


def event_classes_of(cls: type[Any]) -> set[type[Any]]:
    """Return the event classes nested in an entity's class and its bases."""
    return {
        member
        for base in cls.__mro__
        for member in vars(base).values()
        if isinstance(member, type) and issubclass(member, DomainEvent)
    }


def personal_names(cls: type[Any]) -> set[str]:
    """Return an entity's personal-data names, without leading underscores."""
    declared: Mapping[str, str | None] = getattr(cls, DECLARATION, {})
    fields = {name for event_class in event_classes_of(cls) for name in plan_of(event_class).fields}
    kept = {declared.get(name, name) for name in fields}
    return {name.lstrip("_") for name in {*kept, *plan_of(cls).fields} if name is not None}


def refuse_unmarked(cls: type[Any], names: Iterable[str]) -> None:
    """
    Refuse a class whose ``Created`` event would not encrypt personal data.

    Args:
        cls: The entity class.
        names: The arguments of its constructor that the event keeps.

    Raises:
        ConfigurationError: The entity marks an argument as personal data, but the event does not.
    """
    marked = marked_names(cls)
    if not marked:
        return
    declared: Mapping[str, str | None] = getattr(cls, DECLARATION, {})
    sealed = {name.lstrip("_") for name in plan_of(cls.Created).fields}
    for name in names:
        kept = {name.lstrip("_"), (declared.get(name) or name).lstrip("_")}
        if kept & marked and name.lstrip("_") not in sealed:
            raise ConfigurationError(
                f"{name!r} of {class_name(cls)} holds personal data, "
                f"which {class_name(cls.Created)} would not encrypt",
                remedy="Define the class Created in the entity's class, and annotate its field there too: "
                f"{name}: Annotated[..., PersonalData(subject=...)].",
            )


def protected_state(
    cls: type[Any],
    state: dict[str, Any],
    event_classes: Iterable[type[Any]],
    subjects: Mapping[str, str] = NO_SUBJECTS,
) -> ObjectState:
    """
    Return an entity's state, with the attributes to seal and their subjects.

    Args:
        cls: The entity's class.
        state: Its attributes.
        event_classes: The classes of the applied events, in addition to the nested ones.
        subjects: The scope of the subject that owned the last value of each field in these events.

    Raises:
        ConfigurationError: No declaration says where a field is kept, or an attribute now belongs to another
            subject.
    """
    kept, shapes = _kept(cls, state, event_classes)
    # Empty values belong to no subject, and an entity whose subject was erased has snapshots, too.
    sealed = {name: shape for name, shape in shapes.items() if not _is_empty(state.get(name))}
    names = {attribute.lstrip("_"): attribute for attribute in state} | {name: name for name in state}
    if "id" in names:
        names.setdefault("originator_id", names["id"])
    protected = ObjectState(state, sealed, names)
    for one in kept:
        own_subjects = _subjects(shapes[one.attribute])
        if one.field in subjects and own_subjects == _subjects(one.shape):
            _check_subject(cls, one, subjects[one.field], protected)
    return protected


def with_personal_masks(
    cls: type[Any], state: dict[str, Any], event_classes: Iterable[type[Any]]
) -> dict[str, Any]:
    """Replace erased attributes by masks. The annotations of the entity and of its events name the masks."""
    # If the entity class has changed since, it still gets its masks as far as it explains where they belong.
    _, shapes = _kept(cls, state, event_classes, only_explained=True)
    return state | {name: with_masks(shape, state[name]) for name, shape in shapes.items() if name in state}


def subjects_of(cls: type[Any], state: dict[str, Any], event_classes: Iterable[type[Any]]) -> dict[str, str]:
    """Return the subject's scope of each personal-data field of an entity."""
    kept, _ = _kept(cls, state, event_classes)
    protected = protected_state(cls, state, event_classes)
    found = {one.field: _scope_in(one.shape, Enclosing("", protected)) for one in kept}
    return {field: scope for field, scope in found.items() if scope is not None}


def subjects_in(event: object) -> dict[str, str | None]:
    """
    Return the subject's scope of each personal-data field in an event.

    It is ``None`` for an erased field.
    """
    shapes = plan_of(type(event)).fields
    if not shapes:
        return {}
    attributes = attributes_of(event)
    enclosing = Enclosing("", attributes)
    return {
        name: None if _is_mask(shape, attributes[name]) else _scope_in(shape, enclosing)
        for name, shape in shapes.items()
        if name in attributes
    }


def _kept(
    cls: type[Any],
    state: dict[str, Any],
    event_classes: Iterable[type[Any]],
    *,
    only_explained: bool = False,
) -> tuple[list[_Kept], dict[str, Shape]]:
    """Return the kept fields of an entity's events, and its attributes' shapes."""
    own = {_attribute(name, state) or name: shape for name, shape in plan_of(cls).fields.items()}
    declared: Mapping[str, str | None] = getattr(cls, DECLARATION, {})
    kept: dict[str, _Kept] = {}
    for event_class in sorted({*event_classes_of(cls), *event_classes}, key=class_name):
        for field, shape in plan_of(event_class).fields.items():
            attribute = declared[field] if field in declared else _attribute(field, state)
            if attribute is None and field in declared:
                continue
            if attribute is None or attribute not in state:
                if only_explained:
                    continue
                raise _unexplained(cls, event_class, field, attribute)
            if not fits(shape, state[attribute]):
                shape = _whole(shape)  # noqa: PLW2901 - kept in another form, such as a list of the values
            other = kept.get(attribute)
            if other is not None and attribute not in own and _subjects(other.shape) != _subjects(shape):
                raise ConfigurationError(
                    f"by its events, the attribute {attribute!r} of {class_name(cls)} is of several subjects",
                    remedy="Annotate the attribute itself, in the body of the entity's class.",
                )
            kept.setdefault(attribute, _Kept(field, attribute, shape))
    return list(kept.values()), {name: one.shape for name, one in kept.items()} | own


def _attribute(field: str, state: Collection[str]) -> str | None:
    for name in (field, f"_{field}", field.lstrip("_")):
        if name in state:
            return name
    return None


def _whole(shape: Shape) -> Shape:
    data = personal_data_in(shape)[0]
    return Sealed(PersonalData(data.subject)) if len(_subjects(shape)) == 1 else shape


def _subjects(shape: Shape) -> set[str]:
    return {data.subject for data in personal_data_in(shape)}


def _scope_in(shape: Shape, enclosing: Enclosing) -> str | None:
    names = _subjects(shape)
    subject = find_subject(names.pop(), [enclosing]) if len(names) == 1 else None
    if subject is None or subject.value is None:
        return None
    try:
        return subject_scope(subject.value)
    except Refused:  # writing the attribute reports it
        return None


def _is_empty(value: object) -> bool:
    return value is None or (type(value) in {str, list, tuple, dict} and not value)


def _is_mask(shape: Shape, value: object) -> bool:
    return type(value) is Masked or (isinstance(shape, Sealed) and shape.data.masks(value))


def _check_subject(cls: type[Any], one: _Kept, scope: str, state: ObjectState) -> None:
    value = state[one.attribute]
    shape = state.shapes.get(one.attribute)
    if shape is None or _is_mask(shape, value):
        return
    now = _scope_in(shape, Enclosing("", state))
    if now is not None and now != scope:
        raise ConfigurationError(
            f"{one.attribute!r} of {class_name(cls)} is of another subject than the event that set it, "
            "so erasing the event's subject would not reach the snapshot",
            remedy="Keep the id of the subject next to the data, and annotate the attribute with it.",
        )


def _unexplained(
    cls: type[Any], event_class: type[Any], field: str, attribute: str | None
) -> ConfigurationError:
    where = repr(field) if attribute is None else f"{field!r} as {attribute!r}"
    return ConfigurationError(
        f"{class_name(cls)} does not keep {where}, the personal data of {class_name(event_class)}, "
        "so EventSeal does not know which attribute a snapshot must encrypt",
        remedy=f"Declare in the class where it is kept: {DECLARATION} = {{{field!r}: '_attribute'}}, or "
        "None if it is not kept.",
    )
