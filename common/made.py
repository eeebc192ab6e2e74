"""Classes that are made while a program runs, whose objects can be copied and pickled.

def shouting(kind):
    return made_class(shouting, kind, (), {"forward": ...})
"""


def made_class(maker, kind, given, members):
    """A subclass of `kind` with the same name. members: its attributes. maker: the function that is
    called; maker(kind, *given) makes the class again where one of its objects is unpickled."""
    return type(
        kind.__name__,
        (kind,),
        {
            **members,
            "__module__": kind.__module__,
            "__reduce_ex__": _reduce,
            "_recipe": (maker, _recipe_of(kind), given),
        },
    )


def _recipe_of(kind):
    return vars(kind).get("_recipe", kind)


def _class_of(recipe):
    if isinstance(recipe, type):
        return recipe
    maker, kind, given = recipe
    return maker(_class_of(kind), *given)


def _empty(recipe):
    kind = _class_of(recipe)
    return kind.__new__(kind)


def _reduce(self, protocol):
    _new, _args, *state = object.__reduce_ex__(self, protocol)
    return _empty, (_recipe_of(type(self)),), *state
