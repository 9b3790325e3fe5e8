"""The attributes of a class that hold personal data, by its annotations."""

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
    Yield annotations of a class and its bases outside their bodies.

    A class can annotate the arguments of generic base classes, and the parameters of constructors, of class
    methods and of static methods. It can annotate the parameters and results of properties and other
    descriptors, and ``self.name: ...`` in methods. The metadata of fields, of a dataclass or of attrs, may
    also have markers.
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
    """Yield the annotated parameters of a function, class method or static method."""
    function = _function(member)
    if function is not None:
        names = Names(cls, function)
        # A function that ``dataclass`` wrote repeats the bodies. Their modules define the names in text.
        bodies = [_annotations(base) for base in cls.__mro__] if is_generated(function) else []
        for name, kept in _annotations(function).items():
            if name != "return" and not any(name in body and body[name] == kept for body in bodies):
                yield resolved_annotation(cls, f".{function.__name__}({name})", name, kept, names)


def is_generated(function: FunctionType) -> bool:
    """Return whether a function was generated, like a dataclass's constructor."""
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
    A class's own annotations.

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

    A plain class is read, but the classes that it names are not. Its objects need their own encoding, and the
    registration of an encoding checks the type with all that it holds.

    Args:
        where: The place, for messages.
        held: The classes.
        in_dataclasses: Whether dataclasses are read too, and every class is followed. Otherwise the
            annotations of dataclasses seal their objects.

    Raises:
        ConfigurationError: One of the classes marks personal data.
        UnresolvedAnnotationError: The body of a dataclass, or of a typed dictionary, cannot be read.
    """
    # Breadth first, each class once, because following paths took factorial time (docs/decisions/0028).
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
                "which would not be sealed there",
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
    if is_complete and unread is None:  # otherwise the import of its module may not be complete
        _owns[cls] = own
    return own


@dataclass(frozen=True, slots=True)
class Declared:
    """
    An attribute that a class annotates in its body.

    Attributes:
        text: Its annotation as source text.
        classes: The classes that the annotation names.
        not_personal: The reason in its ``NotPersonal``.
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
        has_masks: Whether an attribute has its own mask.
        declared: All attributes that the class and its bases annotate in their bodies.
    """

    fields: dict[str, Shape] = field(default_factory=dict)
    has_masks: bool = False
    declared: dict[str, Declared] = field(default_factory=dict)

    def put_masks(self, attributes: dict[str, Any]) -> None:
        """Put the masks of the class into the places of erased data."""
        if self.has_masks:
            for name, shape in self.fields.items():
                if name in attributes:
                    attributes[name] = with_masks(shape, attributes[name])


_plans: dict[type[Any], Plan] = {}
_marked_names: dict[type[Any], set[str]] = {}


def plan_of(cls: type[Any]) -> Plan:
    """
    Return the places of personal data in objects of *cls*.

    Raises:
        ConfigurationError: Its annotations contradict each other, cannot be resolved, or mark personal data
            that would not be sealed.
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
        remedy="Derive events from your own classes.",
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
                f"{annotation.where} is annotated again, without the PersonalData of a base class",
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
    """Return whether unknown names are tolerated: in ``__special__`` attributes and other packages."""
    return _is_special(annotation.name) or package_of(annotation.owner) != package_of(cls)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _check_places(cls: type[Any], fields: Mapping[str, Shape]) -> None:
    # pydantic does not store those under their names.
    private = getattr(cls, "__private_attributes__", {})
    for name in fields:
        member = private[name] if name in private else getattr_static(cls, name, None)
        is_elsewhere = name in private or hasattr(type(member), "__set__")
        if is_elsewhere and not isinstance(member, MemberDescriptorType):
            raise ConfigurationError(
                f"{class_name(cls)}.{name} is personal data, but a {type(member).__name__} of the class "
                "has that name, so objects may store the value under another name",
                remedy="Annotate the attribute that stores the value.",
            )


def _check_subjects(cls: type[Any], fields: Mapping[str, Shape]) -> None:
    for name, shape in fields.items():
        for data in personal_data_in(shape):
            if data.subject in fields:
                raise ConfigurationError(
                    f"{class_name(cls)}.{name}: its subject, {data.subject!r}, is personal data too, so "
                    "after an erasure no one could say whose data it was",
                    remedy="Name the subject by an id that does not identify a person.",
                )


def _check_elsewhere(cls: type[Any], said: Mapping[str, list[Shape]]) -> None:
    """Refuse personal data that only an annotation outside of the body marks."""
    known = {name.lstrip("_"): [_meaning(shape) for shape in shapes] for name, shapes in said.items()}
    for annotation in annotations_elsewhere(cls):
        reading = read_annotation(annotation, lenient=True)
        refuse_held(annotation.where, reading.held, in_dataclasses=False)
        shape = reading.shape
        if shape is not None and _meaning(shape) not in known.get(annotation.name.lstrip("_"), ()):
            raise ConfigurationError(
                f"{annotation.where} is annotated as personal data, "
                "but no annotation of an attribute in the body of the class says the same",
                remedy="Annotate the attribute in the body of the class, name: Annotated[str, "
                "PersonalData(subject=...)], or remove PersonalData from this annotation.",
            )


def _meaning(shape: Shape) -> tuple[Any, ...]:
    """Return the parts that annotations of the same data share."""
    return type(shape) is Sealed, meanings(shape)


def refuse_personal(
    cls: type[Any], why: str, remedy: str, *, functions: Iterable[object] = (), lenient: bool = False
) -> None:
    """
    Refuse a class with marked personal data, its own or its attributes'.

    Args:
        cls: The class.
        why: The reason of the refusal. The message continues "... is personal data, and ...".
        remedy: The remedy.
        functions: Functions whose parameters become attributes of the class.
        lenient: Whether an unresolved name counts as not personal.

    Raises:
        ConfigurationError: The class marks personal data, or a name in an annotation cannot be resolved.
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
    """Return whether a class or base marks personal data in its body. Unknown names do not count."""
    return bool(_marked(annotations_of(cls)))


def marked_names(cls: type[Any]) -> set[str]:
    """Return known names that a class marks anywhere, without leading underscores."""
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
    """Return the reason of a ``NotPersonal``, even of an alias."""
    hint = annotation.hint
    seen = []
    while (alias := alias_of(hint)) is not None and hint not in seen:
        seen.append(hint)
        hint = alias_value(alias, hint)[0]
    if get_origin(hint) is not Annotated:
        return None
    return next((one.reason for one in hint.__metadata__ if isinstance(one, NotPersonal)), None)
