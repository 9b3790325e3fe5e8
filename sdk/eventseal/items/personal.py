"""Which attributes of a class hold personal data, and whose, by its annotations."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_origin

from eventseal.errors import ConfigurationError
from eventseal.items.annotation_reading import Reader, UnresolvedAnnotationError
from eventseal.items.annotations import alias_of, alias_value, annotations_of
from eventseal.items.class_members import annotations_elsewhere, parameters_of
from eventseal.items.shapes import NO_MASK, NotPersonal, Sealed, personal_data_in, with_masks
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventseal.items.annotations import Annotation
    from eventseal.items.shapes import Shape


@dataclass(frozen=True, slots=True)
class Declared:
    """
    An attribute that a class annotates in its body.

    Attributes:
        text: Its annotation as it is written.
        classes: The classes that the annotation names.
        not_personal: The reason that ``NotPersonal`` gives.
    """

    text: str
    classes: tuple[type[Any], ...]
    not_personal: str | None


@dataclass(frozen=True, slots=True)
class Plan:
    """
    The personal data of a class.

    Attributes:
        fields: The places of personal data, by attribute.
        has_masks: Whether an attribute has a mask of its own.
        declared: All attributes that the class and its bases annotate in their bodies.
    """

    fields: dict[str, Shape] = field(default_factory=dict)
    has_masks: bool = False
    declared: dict[str, Declared] = field(default_factory=dict)

    def put_masks(self, attributes: dict[str, Any]) -> None:
        """Put the masks of the class where something was erased."""
        if self.has_masks:
            for name, shape in self.fields.items():
                if name in attributes:
                    attributes[name] = with_masks(shape, attributes[name])


_plans: dict[type[Any], Plan] = {}


def plan_of(cls: type[Any]) -> Plan:
    """
    Say where the objects of *cls* hold personal data.

    Raises:
        ConfigurationError: Its annotations contradict themselves, cannot be resolved, or mark personal data
            that nothing would seal.
    """
    plan = _plans.get(cls)
    if plan is None:
        plan = _plans[cls] = _read_plan(cls)
    return plan


def _read_plan(cls: type[Any]) -> Plan:
    fields: dict[str, Shape] = {}
    declared: dict[str, Declared] = {}
    said: dict[str, list[Shape]] = {}
    for annotation in annotations_of(cls):
        name = annotation.name
        reader = Reader(annotation.names, annotation.where)
        shape = reader.shape(annotation.hint)
        reason = _exception(annotation)
        if get_origin(annotation.hint) is not ClassVar and annotation.hint is not ClassVar:
            declared[name] = Declared(annotation.text, tuple(reader.classes), reason)
        if shape is not None:
            fields[name] = shape
            said.setdefault(name, []).append(shape)
        elif name in fields and reason is None:
            raise ConfigurationError(
                f"{annotation.where} is annotated anew, without the PersonalData of a base class",
                remedy="Repeat PersonalData in the annotation, or add NotPersonal.",
            )
        else:
            fields.pop(name, None)
    _check_subjects(cls, fields)
    _check_elsewhere(cls, said)
    has_masks = any(data.mask is not NO_MASK for shape in fields.values() for data in personal_data_in(shape))
    return Plan(fields, has_masks, declared)


def _check_subjects(cls: type[Any], fields: Mapping[str, Shape]) -> None:
    for name, shape in fields.items():
        for data in personal_data_in(shape):
            if data.subject in fields:
                raise ConfigurationError(
                    f"{class_name(cls)}.{name}: its subject, {data.subject!r}, is personal "
                    "data itself, so after an erasure nothing would say whose data it was",
                    remedy="Name the subject by an id that identifies no person by itself.",
                )


def _check_elsewhere(cls: type[Any], said: Mapping[str, list[Shape]]) -> None:
    """Refuse personal data outside of a class's body that an annotation in the body does not repeat."""
    known = {name.lstrip("_"): [_meaning(shape) for shape in shapes] for name, shapes in said.items()}
    for annotation in annotations_elsewhere(cls):
        shape = Reader(annotation.names, annotation.where).shape(annotation.hint)
        if shape is not None and _meaning(shape) not in known.get(annotation.name.lstrip("_"), ()):
            raise ConfigurationError(
                f"{annotation.where} is annotated as personal data, "
                "and no annotation of an attribute in the body of the class says the same",
                remedy="Annotate the attribute in the body of the class: "
                "name: Annotated[str, PersonalData(subject=...)].",
            )


def _meaning(shape: Shape) -> tuple[Any, ...]:
    """Give what two annotations have in common if they mark the same data."""
    return type(shape) is Sealed, [(data.subject, data.mask) for data in personal_data_in(shape)]


def refuse_personal(
    cls: type[Any], why: str, remedy: str, *, functions: Iterable[object] = (), lenient: bool = False
) -> None:
    """
    Refuse a class that marks personal data, or whose attributes hold objects of such a class.

    Args:
        cls: The class.
        why: Why it is refused: the message continues "... is personal data, and ...".
        remedy: What to do about it.
        functions: Functions whose parameters become the class's attributes.
        lenient: Whether a name that cannot be resolved counts as not personal.

    Raises:
        ConfigurationError: It marks some, or a name in an annotation cannot be resolved.
    """
    said = chain(
        annotations_of(cls), annotations_elsewhere(cls), *(parameters_of(cls, one) for one in functions)
    )
    for annotation in said:
        reader = Reader(annotation.names, annotation.where, (cls,), through_dataclasses=True, lenient=lenient)
        try:
            found = reader.shape(annotation.hint)
        except UnresolvedAnnotationError:
            raise
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}, and {why}", remedy=remedy) from None
        if found is not None:
            raise ConfigurationError(f"{annotation.where} is personal data, and {why}", remedy=remedy)


def annotates_personal(cls: type[Any]) -> bool:
    """Whether the body of a class, or of a base, annotates personal data, as far as names are known."""
    for annotation in annotations_of(cls):
        try:
            if Reader(annotation.names, annotation.where, lenient=True).shape(annotation.hint) is not None:
                return True
        except ConfigurationError:
            return True
    return False


def _exception(annotation: Annotation) -> str | None:
    """Give the reason of a ``NotPersonal``, also if an alias has it."""
    hint = annotation.hint
    seen = []
    while (alias := alias_of(hint)) is not None and hint not in seen:
        seen.append(hint)
        hint = alias_value(alias, hint)[0]
    if get_origin(hint) is not Annotated:
        return None
    return next((one.reason for one in hint.__metadata__ if isinstance(one, NotPersonal)), None)
