"""Which attributes of a class hold personal data, whose, and how a mapper protects each."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, is_dataclass
from inspect import getattr_static
from itertools import chain
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias, get_origin

from eventseal.errors import ConfigurationError
from eventseal.items.annotation_reading import read
from eventseal.items.annotations import (
    UnresolvedAnnotationError,
    alias_of,
    alias_value,
    annotations_of,
    package_of,
)
from eventseal.items.class_annotations import annotations_elsewhere, parameters_of, refuse_held
from eventseal.items.evolution import form_of
from eventseal.items.markers import NO_MASK, NotPersonal, Sealed, personal_data_in, with_masks
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from eventseal.items.annotations import Annotation
    from eventseal.items.markers import Shape


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
_marked_names: dict[type[Any], set[str]] = {}


def plan_of(cls: type[Any]) -> Plan:
    """
    Say where the objects of *cls* hold personal data.

    Raises:
        ConfigurationError: Its annotations contradict themselves, cannot be resolved, or mark personal data
            that nothing would seal.
    """
    plan = _plans.get(cls)
    if plan is None:
        try:
            plan = _plans[cls] = _read_plan(cls)
        except ConfigurationError:
            raise
        except Exception as error:  # code of other packages runs here
            raise UnresolvedAnnotationError(
                f"the annotations of {class_name(cls)} cannot be read: {type(error).__name__}",
                remedy="Derive events from classes of your own.",
            ) from error
    return plan


def _read_plan(cls: type[Any]) -> Plan:
    fields: dict[str, Shape] = {}
    declared: dict[str, Declared] = {}
    said: dict[str, list[Shape]] = {}
    for annotation in annotations_of(cls):
        name = annotation.name
        lenient = _is_lenient(annotation, cls)
        reading = read(annotation, lenient=lenient)
        if not _is_special(name):
            refuse_held(annotation.where, reading.held, in_dataclasses=False)
        shape, reason = reading.shape, _exception(annotation)
        if get_origin(annotation.hint) is not ClassVar and annotation.hint is not ClassVar:
            declared[name] = Declared(annotation.text, reading.classes, reason)
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
    _check_places(cls, fields)
    _check_subjects(cls, fields)
    _check_elsewhere(cls, said)
    has_masks = any(data.mask is not NO_MASK for shape in fields.values() for data in personal_data_in(shape))
    return Plan(fields, has_masks, declared)


def _is_lenient(annotation: Annotation, cls: type[Any]) -> bool:
    """Whether a name that cannot be resolved refuses no class: it is of Python, or of another package."""
    return _is_special(annotation.name) or package_of(annotation.owner) != package_of(cls)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _check_places(cls: type[Any], fields: Mapping[str, Shape]) -> None:
    # Those of pydantic are not kept under their names.
    private = getattr(cls, "__private_attributes__", {})
    for name in fields:
        member = private[name] if name in private else getattr_static(cls, name, None)
        is_elsewhere = name in private or hasattr(type(member), "__set__")
        if is_elsewhere and not isinstance(member, MemberDescriptorType):
            raise ConfigurationError(
                f"{class_name(cls)}.{name} is personal data, and a {type(member).__name__} of the class "
                "has that name, so objects may keep the value under another one",
                remedy="Annotate the attribute that keeps the value.",
            )


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
        reading = read(annotation, lenient=True)
        refuse_held(annotation.where, reading.held, in_dataclasses=False)
        shape = reading.shape
        if shape is not None and _meaning(shape) not in known.get(annotation.name.lstrip("_"), ()):
            raise ConfigurationError(
                f"{annotation.where} is annotated as personal data, "
                "and no annotation of an attribute in the body of the class says the same",
                remedy="Annotate the attribute in the body of the class, name: Annotated[str, "
                "PersonalData(subject=...)], or write this annotation without PersonalData.",
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
    bodies = ((one, lenient or _is_lenient(one, cls)) for one in annotations_of(cls))
    others = chain(annotations_elsewhere(cls), *(parameters_of(cls, one) for one in functions))
    try:
        for annotation, is_lenient in chain(bodies, ((one, True) for one in others)):
            _refuse_said(annotation, why, remedy, lenient=is_lenient)
    except ConfigurationError:
        raise
    except Exception as error:  # code of other packages runs here
        if not lenient:
            raise UnresolvedAnnotationError(
                f"the annotations of {class_name(cls)} cannot be read: {type(error).__name__}",
                remedy="Derive events from classes of your own.",
            ) from error


def _refuse_said(annotation: Annotation, why: str, remedy: str, *, lenient: bool) -> None:
    try:
        reading = read(annotation, lenient=lenient)
        if not _is_special(annotation.name):
            refuse_held(annotation.where, reading.held, in_dataclasses=True)
    except UnresolvedAnnotationError:
        if not lenient:
            raise
        return
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}, and {why}", remedy=remedy) from None
    if reading.shape is not None:
        raise ConfigurationError(f"{annotation.where} is personal data, and {why}", remedy=remedy)


def annotates_personal(cls: type[Any]) -> bool:
    """Whether the body of a class, or of a base, annotates personal data, as far as names are known."""
    return bool(_marked(annotations_of(cls)))


def marked_names(cls: type[Any]) -> set[str]:
    """Name, without underscores in front, what a class marks anywhere, as far as names are known."""
    names = _marked_names.get(cls)
    if names is None:
        names = _marked_names[cls] = _marked(chain(annotations_of(cls), annotations_elsewhere(cls)))
    return names


def _marked(annotations: Iterable[Annotation]) -> set[str]:
    found = set()
    for annotation in annotations:
        try:
            is_marked = read(annotation, lenient=True).shape is not None
        except ConfigurationError:
            is_marked = True
        if is_marked:
            found.add(annotation.name.lstrip("_"))
    return found


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


Protection: TypeAlias = Literal["sealed field", "object", "sealed item", "plain"]

_UNDECLARED = Declared("", (), None)


@dataclass(frozen=True, slots=True)
class ProtectedField:
    """
    A field, and how a mapper protects it.

    Attributes:
        name: The attribute.
        declared: What its annotation says.
        protection: ``sealed field`` under its subject's key; ``object``, whose own fields are listed apart;
            ``sealed item`` as a part of the whole; or ``plain``.
        subjects: The attributes that name its subjects.
    """

    name: str
    declared: Declared
    protection: Protection
    subjects: tuple[str, ...] = ()


def protected_fields(cls: type[Any], *, is_sealed: bool) -> list[ProtectedField]:
    """
    List the fields that a class declares, by annotations or by its constructor, with their protection.

    Args:
        cls: An event class, or a class whose objects events hold.
        is_sealed: Whether the item that holds the object is sealed as a whole.

    Raises:
        ConfigurationError: The class would be refused at its first use.
    """
    plan = plan_of(cls)
    form_of(cls)
    found: list[ProtectedField] = []
    for name, declared in {
        **dict.fromkeys(parameters_of_constructors(cls), _UNDECLARED),
        **plan.declared,
    }.items():
        if name in plan.fields:
            subjects = dict.fromkeys(data.subject for data in personal_data_in(plan.fields[name]))
            found.append(ProtectedField(name, declared, "sealed field", tuple(subjects)))
        elif any(is_dataclass(one) for one in declared.classes):
            found.append(ProtectedField(name, declared, "object"))
        else:
            found.append(ProtectedField(name, declared, "sealed item" if is_sealed else "plain"))
    return found


def parameters_of_constructors(cls: type[Any]) -> list[str]:
    """Name the parameters of the application's own constructors: their classes need no annotations."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found: list[str] = []
    for base in cls.__mro__:
        constructor = vars(base).get("__init__")
        is_own = not is_dataclass(base) and not base.__module__.startswith("eventseal.")
        if not is_own or not inspect.isfunction(constructor):
            continue
        parameters = list(inspect.signature(constructor).parameters.values())[1:]
        found += [one.name for one in parameters if one.kind in named]
    return found
