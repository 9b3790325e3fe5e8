"""Which attributes of a class hold personal data, and whose: what its annotations say."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_origin

from eventseal.errors import ConfigurationError
from eventseal.items.annotation_reading import Reader, UnresolvedAnnotationError
from eventseal.items.annotations import alias_value, annotations_of, is_alias
from eventseal.items.class_members import annotations_elsewhere, parameters_of
from eventseal.items.shapes import NO_MASK, NotPersonal, Sealed, personal_data_in, with_masks

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
        classes: The classes that the annotation is made of.
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
        fields: Where they are, by attribute.
        has_masks: Whether an attribute has a mask of its own.
        declared: All attributes that the class and its bases annotate in their bodies.
    """

    fields: dict[str, Shape] = field(default_factory=dict)
    has_masks: bool = False
    declared: dict[str, Declared] = field(default_factory=dict)

    def masked(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Put the masks of the class where something was erased, and give *attributes* back."""
        if self.has_masks:
            for name, shape in self.fields.items():
                if name in attributes:
                    attributes[name] = with_masks(shape, attributes[name])
        return attributes


_plans: dict[type[Any], Plan] = {}


def plan_of(cls: type[Any]) -> Plan:
    """
    Say where the objects of *cls* hold personal data.

    Raises:
        ConfigurationError: Its annotations contradict themselves, cannot be resolved, or say personal data in
            a place where nothing would seal them.
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
                f"{annotation.where} is annotated anew, without the personal data that a base class says it "
                "holds",
                remedy="Repeat PersonalData in the annotation, or say NotPersonal.",
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
                    f"{cls.__module__}:{cls.__qualname__}.{name}: its subject, {data.subject!r}, is personal "
                    "data itself, so nobody could read whose they are after an erasure",
                    remedy="Name the subject by an id that says nothing by itself.",
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
    """Give what two annotations that say the same have in common."""
    return type(shape) is Sealed, [(data.subject, data.mask) for data in personal_data_in(shape)]


def refuse_personal(
    cls: type[Any], why: str, remedy: str, *, functions: Iterable[object] = (), lenient: bool = False
) -> None:
    """
    Refuse a class that says personal data, or whose attributes hold objects of one that does.

    Args:
        cls: The class.
        why: What would become of them: continues "... is personal data, and ...".
        remedy: What to do about it.
        functions: Functions whose parameters become the class's attributes.
        lenient: Whether a name that cannot be resolved counts as not personal.

    Raises:
        ConfigurationError: It does, or a name in an annotation cannot be resolved.
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
    while (is_alias(hint) or is_alias(get_origin(hint))) and hint not in seen:
        seen.append(hint)
        hint = alias_value(hint if is_alias(hint) else get_origin(hint), hint)[0]
    if get_origin(hint) is not Annotated:
        return None
    return next((one.reason for one in hint.__metadata__ if isinstance(one, NotPersonal)), None)
