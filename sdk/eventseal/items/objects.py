"""
Objects as their attributes, and back in the current form without ``__init__``.

The stored attributes come back. A class counts its forms by ``class_version``. For each step between two
forms, it has a static method ``upcast_v1_v2(state)``. A new field of a dataclass needs neither if it has a
default.
"""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from inspect import getattr_static
from types import FunctionType, MemberDescriptorType, MethodType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from eventseal.errors import ConfigurationError, EventSealError, SerializationError
from eventseal.items.annotation_reading import AnnotationReader
from eventseal.items.annotations import Names, raw_annotations
from eventseal.items.personal import Plan, is_generated, plan_of, refuse_held
from eventseal.items.topics import class_name

if TYPE_CHECKING:
    from collections.abc import Mapping


CLASS_VERSION = "class_version"


class Form(NamedTuple):
    """
    The current form of a class.

    Attributes:
        version: Its ``class_version``.
        is_counted: Whether a stored ``class_version`` is the version, and not a normal attribute.
        fields: The fields of a dataclass that objects store under the same name.
        has_constructor: Whether the constructor of the dataclass sets all of them.
    """

    version: int
    is_counted: bool
    fields: frozenset[str]
    has_constructor: bool


_forms: dict[type[Any], Form] = {}


def form_of(cls: type[Any]) -> Form:
    """
    Return the current form of a class.

    Raises:
        ConfigurationError: Its ``class_version`` is not a whole number from 1.
    """
    form = _forms.get(cls)
    if form is None:
        form = _forms[cls] = _read_form(cls)
    return form


def in_todays_form(cls: type[Any], attributes: dict[str, Any]) -> dict[str, Any]:
    """
    Bring stored attributes into the current form of their class.

    Args:
        cls: The class.
        attributes: The stored attributes. The function changes and returns this dictionary.

    Raises:
        SerializationError: They are of a later version than the class, an upcast fails, or a field without a
            default is missing.
        ConfigurationError: The class has no upcast from their version, or an upcast returns a value.
    """
    form = _forms.get(cls) or form_of(cls)
    if form.is_counted and (form.version > 1 or CLASS_VERSION in attributes):
        _upcast(cls, form.version, attributes)
    if form.fields and form.fields.difference(attributes):
        _fill(cls, form, attributes)
    return attributes


def _upcast(cls: type[Any], current_version: int, attributes: dict[str, Any]) -> None:
    stored: Any = attributes.pop(CLASS_VERSION, 1)
    name = class_name(cls)
    if type(stored) is not int or not 1 <= stored <= current_version:
        shown = stored if type(stored) is int else f"a {type(stored).__name__}"
        raise SerializationError(
            f"a stored {name} is of version {shown}, but the class is of version {current_version}",
            remedy="Read it with the release of your application that wrote it, or a later one.",
        )
    for version in range(stored, current_version):
        step = f"upcast_v{version}_v{version + 1}"
        function = getattr(cls, step, None)
        if function is None:
            raise ConfigurationError(
                f"{name} is of version {current_version}, but has no {step}()",
                remedy=f"Define the static method {step}(state), which changes the stored attributes.",
            )
        try:
            returned = function(attributes)
        except EventSealError:
            raise
        except Exception as error:  # noqa: BLE001 - the application's own code
            kind = type(error).__name__
        else:
            if returned is None:
                continue
            raise ConfigurationError(
                f"{name}.{step}() returned a {type(returned).__name__}, which would be lost",
                remedy=f"Let {step}(state) change state in place, and return nothing.",
            )
        # Raised here, because the cause would hold the plaintext.
        raise SerializationError(
            f"{name}.{step}() raised a {kind} on a stored state of version {version}",
            remedy="Correct the function. Personal data in the state may be masks.",
        )


def _fill(cls: type[Any], form: Form, attributes: dict[str, Any]) -> None:
    for field in fields(cls):
        if field.name not in form.fields or field.name in attributes:
            continue
        if field.default is not MISSING:
            attributes[field.name] = field.default
        elif field.default_factory is not MISSING:
            attributes[field.name] = field.default_factory()
        elif field.init and form.has_constructor:
            raise SerializationError(
                f"a stored {class_name(cls)} has no {field.name!r}, and this field has no default",
                remedy=f"Add a default to {field.name!r}, or raise {CLASS_VERSION} and define an upcast.",
            )


def _read_form(cls: type[Any]) -> Form:
    said = getattr_static(cls, CLASS_VERSION, None)
    is_own = said is None or hasattr(type(said), "__get__")  # at most an attribute of its objects
    if not is_own and (type(said) is not int or said < 1):
        raise ConfigurationError(
            f"{CLASS_VERSION} of {class_name(cls)} is {said!r}",
            remedy="Set it to a whole number from 1.",
        )
    annotated = any(CLASS_VERSION in raw_annotations(base) for base in cls.__mro__)
    kept = (field.name for field in fields(cls)) if is_dataclass(cls) else ()
    # Whether ``dataclass`` wrote it, because another constructor may omit a field.
    constructor = getattr_static(cls, "__init__")
    return Form(
        1 if is_own else said,
        not (is_own and annotated),
        frozenset(name for name in kept if _is_kept(getattr_static(cls, name, None))),
        isinstance(constructor, FunctionType) and is_generated(constructor),
    )


def _is_kept(member: object) -> bool:
    """Return whether objects store a field under its name. With a property, for example, they do not."""
    return isinstance(member, MemberDescriptorType) or not hasattr(type(member), "__set__")


_ARGUMENTS = "__orig_class__"
_METHODS = (FunctionType, MethodType, classmethod, staticmethod)


class _Layout(NamedTuple):
    """
    The places where objects of a class store their state.

    Attributes:
        slots: The slots that hold state, by name.
        has_dict: Whether the objects have a ``__dict__``.
        computed: Attributes that the class computes, and that are not stored.
        hidden: Names of properties without a setter. A value stored under such a name would be invisible.
        form: The current form of the class.
    """

    slots: Mapping[str, MemberDescriptorType]
    has_dict: bool
    computed: tuple[str, ...]
    hidden: frozenset[str]
    form: Form


class _Today(NamedTuple):
    """
    The treatment of stored attributes of a class.

    Attributes:
        is_simple: Whether they go into the ``__dict__`` unchanged, if no field is missing.
        fields: The stored fields of a dataclass.
        layout: The places where its objects store their state.
        plan: Its personal data.
    """

    is_simple: bool
    fields: frozenset[str]
    layout: _Layout
    plan: Plan


_todays: dict[type[Any], _Today] = {}
_layouts: dict[type[Any], _Layout] = {}


def attributes_of(obj: object) -> dict[str, Any]:
    """
    Copy an object's attributes: its ``__dict__``, and its slots with a value.

    It omits computed values, which a cached property or another descriptor of the class stores there.

    Args:
        obj: A domain event, or a dataclass inside one.

    Raises:
        SerializationError: The class stores state elsewhere, so it would not come back whole, or a property
            hides an attribute. Or it has an attribute ``class_version`` and its class has none.
        ConfigurationError: It was created as ``Class[Argument](...)``, and the argument is personal data.
    """
    cls = type(obj)
    layout = _layouts.get(cls) or _read_layout(cls)
    state = getattr(obj, "__dict__", None)
    attributes = {} if state is None else dict(state)
    for name, slot in layout.slots.items():
        try:
            attributes[name] = slot.__get__(obj)
        except AttributeError:  # a slot without a value
            continue
    if layout.hidden and not layout.hidden.isdisjoint(attributes):
        name = min(layout.hidden.intersection(attributes))
        raise SerializationError(
            f"a {class_name(cls)} stores {name!r} under the name of a property without a setter",
            remedy="Rename the property or the attribute. If the property only stores its computed value, "
            "use functools.cached_property.",
        )
    for name in layout.computed:  # docs/decisions/0028: only attributes are stored, and no computed values
        attributes.pop(name, None)
    if _ARGUMENTS in attributes:
        reader = AnnotationReader(Names(cls), class_name(cls))
        reader.refuse_inside(get_args(attributes.pop(_ARGUMENTS)), "its arguments")
        refuse_held(class_name(cls), reader.held, in_dataclasses=False)
    if layout.form.version > 1:
        attributes[CLASS_VERSION] = layout.form.version
    elif CLASS_VERSION in attributes and layout.form.is_counted:
        raise SerializationError(
            f"a {class_name(cls)} has an attribute {CLASS_VERSION!r}, which a reader would take "
            "for the version of its class",
            remedy=f"Annotate {CLASS_VERSION!r} in the body of the class, or rename it.",
        )
    return attributes


def restore(cls: type[Any], attributes: dict[str, Any]) -> Any:
    """
    Create an object of *cls*, frozen or not, without its ``__init__``.

    Args:
        cls: The class.
        attributes: The stored attributes. The function changes the dictionary: it gets the current form, and
            masks.

    Raises:
        SerializationError: *cls* stores state elsewhere, has no place for an attribute, or has a form that
            they cannot be brought into.
        ConfigurationError: *cls* has no upcast for them, or its annotations are refused.
    """
    is_simple, fields_, _, plan = _todays.get(cls) or _read_today(cls)
    if is_simple and CLASS_VERSION not in attributes and (not fields_ or attributes.keys() >= fields_):
        obj: Any = object.__new__(cls)
        obj.__dict__.update(attributes)
        return obj
    in_todays_form(cls, attributes)
    plan.put_masks(attributes)
    return restore_current(cls, attributes)


def restore_current(cls: type[Any], attributes: dict[str, Any]) -> Any:
    """Create an object from attributes in the current form, with their masks."""
    layout = (_todays.get(cls) or _read_today(cls)).layout
    obj: Any = object.__new__(cls)
    for name in layout.computed:  # an earlier release stored them
        attributes.pop(name, None)
    for name, value in attributes.items():
        if name in layout.slots:
            layout.slots[name].__set__(obj, value)
        elif layout.has_dict:
            obj.__dict__[name] = value
        else:
            raise SerializationError(
                f"{class_name(cls)} no longer has the attribute {name!r}",
                remedy="Add the attribute to the class again, or remove it in an upcast.",
            )
    return obj


def _read_today(cls: type[Any]) -> _Today:
    layout = _layouts.get(cls) or _read_layout(cls)
    form, plan = layout.form, plan_of(cls)
    is_simple = form.version == 1 and not (layout.slots or layout.computed or plan.has_masks)
    today = _todays[cls] = _Today(is_simple, form.fields, layout, plan)
    return today


def _read_layout(cls: type[Any]) -> _Layout:
    try:
        probe = object.__new__(cls)
    except TypeError:  # an abstract class, or one with a built-in base, such as a named tuple
        probe = None
    # Descriptors have the mangled names of private slots.
    slots = {
        name: member
        for base in reversed(cls.__mro__)
        for name, member in vars(base).items()
        if isinstance(member, MemberDescriptorType)
    }
    has_dict = hasattr(probe, "__dict__")
    if probe is None or not (slots or has_dict):
        raise SerializationError(
            f"{class_name(cls)} does not store its state in attributes",
            remedy="Use a plain class or a dataclass, or register an encoding for the type.",
        )
    names = {name: None for base in cls.__mro__ for name in vars(base) if not name.startswith("__")}
    members = {name: getattr_static(cls, name) for name in names}
    hidden = frozenset(
        name for name, member in members.items() if isinstance(member, property) and member.fset is None
    )
    for field in fields(cls) if is_dataclass(cls) else ():
        names.pop(field.name, None)  # the class attribute of that name is its default
    computed = tuple(name for name in names if _is_computed(members[name]))
    layout = _layouts[cls] = _Layout(slots, has_dict, computed, hidden, form_of(cls))
    return layout


def _is_computed(member: object) -> bool:
    """Return whether the class computes a stored value, like a cached property."""
    kind = type(member)
    return hasattr(kind, "__get__") and not hasattr(kind, "__set__") and not isinstance(member, _METHODS)
