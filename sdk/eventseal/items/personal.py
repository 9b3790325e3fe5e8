"""Which attributes of a class hold personal data: what its annotations say, in its body and elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from inspect import getattr_static, unwrap
from itertools import chain
from types import FunctionType, MemberDescriptorType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, get_args, get_origin

from eventseal.errors import ConfigurationError
from eventseal.items.annotation_reading import NamedClass, markers_in, read_annotation
from eventseal.items.annotations import (
    Names,
    UnresolvedAnnotationError,
    alias_of,
    alias_value,
    annotations_of,
    package_of,
    raw_annotations,
    resolved_annotation,
    source_of,
)
from eventseal.items.markers import NO_MASK, NotPersonal, Sealed, meanings, personal_data_in, with_masks
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from eventseal.items.annotations import Annotation
    from eventseal.items.markers import Shape


UNMARKED_PACKAGES = sys.stdlib_module_names | {"eventseal"}
"""Packages whose classes annotate no personal data."""

_CONSTRUCTORS = ("__init__", "__new__", "__post_init__")
_PARTS = ("fget", "fset", "func", "__wrapped__")


def annotations_elsewhere(cls: type[Any]) -> Iterator[Annotation]:
    """
    Give what a class and its bases annotate outside of their bodies.

    A class can annotate the arguments of generic base classes, and the parameters of constructors, of class
    methods and of static methods. It can annotate what properties and other descriptors take and return, and
    ``self.name: ...`` in methods. The metadata of fields, of a dataclass or of attrs, may have markers too.
    """
    for base in reversed(cls.__mro__):
        if package_of(base) in UNMARKED_PACKAGES:
            continue
        for generic in vars(base).get("__orig_bases__", ()):
            for argument in get_args(generic):
                yield resolved_annotation(base, f"[{argument}]", "", argument, None)
        for name, member in list(vars(base).items()):
            yield from _of_member(base, name, member)
        yield from _of_source(base)
    attributes = [*(fields(cls) if is_dataclass(cls) else ()), *getattr(cls, "__attrs_attrs__", ())]
    for one in attributes:
        for marker in markers_in(one.metadata)[:1]:
            yield resolved_annotation(cls, f".{one.name}", "", Annotated[Any, marker], None)


def parameters_of(cls: type[Any], member: object) -> Iterator[Annotation]:
    """Give the annotated parameters of a function, a class method or a static method."""
    function = _function(member)
    if function is not None:
        names = Names(cls, function)
        # A function that ``dataclass`` wrote repeats the bodies, whose modules say what text means.
        bodies = [_annotations(base) for base in cls.__mro__] if is_generated(function) else []
        for name, kept in _annotations(function).items():
            if name != "return" and not any(name in body and body[name] == kept for body in bodies):
                yield resolved_annotation(cls, f".{function.__name__}({name})", name, kept, names)


def is_generated(function: FunctionType) -> bool:
    """Whether a function, such as a dataclass's constructor, was made from text."""
    return function.__code__.co_filename.startswith("<")


def _function(member: object) -> FunctionType | None:
    try:
        function = unwrap(getattr(member, "__func__", member))  # type: ignore[arg-type]  # it may be anything
    except Exception:  # noqa: BLE001 - an object of another package
        return None
    return function if isinstance(function, FunctionType) else None


def _annotations(holder: Any) -> Mapping[str, Any]:
    try:
        return raw_annotations(holder)
    except UnresolvedAnnotationError:
        return {}


def _of_member(cls: type[Any], name: str, member: object) -> Iterator[Annotation]:
    if name in _CONSTRUCTORS:
        yield from parameters_of(cls, member)
    elif name.startswith("__"):
        return
    elif isinstance(member, classmethod | staticmethod):
        yield from parameters_of(cls, member)
    elif not isinstance(member, FunctionType | type):
        for part in _PARTS:
            try:
                function = getattr(member, part, None)
            except Exception:  # noqa: BLE001, S112 - an object of another package
                continue
            if isinstance(function, FunctionType):
                names = Names(cls, function)
                for kept in _annotations(function).values():
                    yield resolved_annotation(cls, f".{name}", name, kept, names)


def _of_source(cls: type[Any]) -> Iterator[Annotation]:
    module = sys.modules.get(cls.__module__)
    if module is None:
        return
    for method, name, text in source_of(module).attributes.get(cls.__qualname__, ()):
        function = _function(vars(cls).get(method))
        names = None if function is None else Names(cls, function)
        yield resolved_annotation(cls, f".{method}: self.{name}", name, text, names)


class _Own(NamedTuple):
    """
    What a class annotates itself.

    Attributes:
        marked: The place of personal data.
        unread: The place in its body that cannot be read, and why.
        held: The classes that it names.
    """

    marked: str | None = None
    unread: str | None = None
    held: tuple[type[Any], ...] = ()


_owns: dict[type[Any], _Own] = {}


def refuse_held(where: str, held: Iterable[NamedClass], *, in_dataclasses: bool) -> None:
    """
    Refuse personal data in classes whose objects a place may hold.

    A plain class is looked at and not followed: its objects need an encoding of their own, and whoever
    registers one has the type checked with all that it holds.

    Args:
        where: The place, for messages.
        held: The classes.
        in_dataclasses: Whether dataclasses are looked at, and every class is followed. Else the objects of
            dataclasses are sealed by their own annotations.

    Raises:
        ConfigurationError: One of them marks personal data.
        UnresolvedAnnotationError: The body of a dataclass, or of a typed dictionary, cannot be read.
    """
    # Breadth first, each class once: to follow paths took factorial time (docs/decisions/0028).
    wanted = deque(held)
    seen: set[NamedClass] = set()
    while wanted:
        one = wanted.popleft()
        if one in seen or _is_unmarked(one.cls) or (is_dataclass(one.cls) and not in_dataclasses):
            continue
        seen.add(one)
        own = _owns.get(one.cls) or _read_own(one.cls)
        if own.marked is not None:
            raise ConfigurationError(
                f"{where} holds a {one.cls.__qualname__}, and {own.marked} is personal data, "
                "which nothing would seal there",
                remedy=f"Make {one.cls.__qualname__} a dataclass, and store it with a SequencedItemMapper.",
            )
        is_record = is_dataclass(one.cls) or hasattr(one.cls, "__required_keys__")
        if is_record and own.unread is not None and not one.lenient:
            raise UnresolvedAnnotationError(
                f"{where} holds a {one.cls.__qualname__}, and {own.unread}",
                remedy="Correct that annotation, or write Annotated[..., NotPersonal('why')] there or here.",
            )
        if in_dataclasses or is_record or hasattr(one.cls, "_fields"):
            lenient = one.lenient or not is_record
            wanted += (NamedClass(cls, lenient) for cls in own.held)


def _is_unmarked(cls: type[Any]) -> bool:
    return package_of(cls) in UNMARKED_PACKAGES or issubclass(cls, Enum)


def _read_own(cls: type[Any]) -> _Own:
    held: dict[type[Any], None] = {}
    unread: str | None = None
    is_complete = True
    try:
        for is_body, annotations in ((True, annotations_of(cls)), (False, annotations_elsewhere(cls))):
            for said in annotations:
                try:
                    reading = read_annotation(said, lenient=True)
                except ConfigurationError:
                    return _Own(said.where)
                if reading.shape is not None:
                    return _Own(said.where)
                is_complete &= reading.is_complete
                if is_body and not reading.is_complete:
                    unread = f"{said.where} cannot be resolved"
                held.update(dict.fromkeys(one.cls for one in reading.held))
    except Exception as error:  # noqa: BLE001 - code of other packages runs here
        unread = f"its annotations cannot be read: {type(error).__name__}"
    own = _Own(None, unread, tuple(held))
    if is_complete and unread is None:  # else its module may still be being imported
        _owns[cls] = own
    return own


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
            raise _unreadable(cls, error) from error
    return plan


def _unreadable(cls: type[Any], error: Exception) -> UnresolvedAnnotationError:
    return UnresolvedAnnotationError(
        f"the annotations of {class_name(cls)} cannot be read: {type(error).__name__}",
        remedy="Derive events from classes of your own.",
    )


def _read_plan(cls: type[Any]) -> Plan:
    fields: dict[str, Shape] = {}
    declared: dict[str, Declared] = {}
    said: dict[str, list[Shape]] = {}
    for annotation in annotations_of(cls):
        name = annotation.name
        lenient = _is_lenient(annotation, cls)
        reading = read_annotation(annotation, lenient=lenient)
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
        reading = read_annotation(annotation, lenient=True)
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
    return type(shape) is Sealed, meanings(shape)


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
            raise _unreadable(cls, error) from error


def _refuse_said(annotation: Annotation, why: str, remedy: str, *, lenient: bool) -> None:
    try:
        reading = read_annotation(annotation, lenient=lenient)
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
            is_marked = read_annotation(annotation, lenient=True).shape is not None
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
