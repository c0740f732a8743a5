"""Classes of objectives and parts are found by their short names; two classes of one name are refused."""

import sys
from types import ModuleType

import pytest
from torch import nn

from lit_pref.objectives import (
    Hard,
    classes_by_name,
)


def module_with(name, **classes):
    module = ModuleType(name)
    for short, base in classes.items():
        setattr(module, short, type(short, (base,), {"__module__": name}))
    return module


def test_two_classes_of_one_short_name_are_refused_with_both_import_paths():
    first, second = module_with("mine.one", Fresh=Hard), module_with("mine.two", Fresh=nn.Module, Other=Hard)
    with pytest.raises(ImportError, match=r"two classes are called Fresh: mine\.one\.Fresh and mine\.two\.Fresh\."):
        classes_by_name([first, second])
    assert set(classes_by_name([second])) == {"Fresh", "Other"}


@pytest.mark.parametrize(
    ("name", "owner"),
    [("Hard", r"lit_pref\.objectives\.parts\.target"), ("pkgutil", r"lit_pref\.objectives")],
)
def test_a_class_does_not_take_a_name_that_the_package_has(name, owner):
    with pytest.raises(ImportError, match=rf"two classes are called {name}: {owner}\.{name} and mine\.one\.{name}"):
        classes_by_name([module_with("mine.one", **{name: nn.Module})])


def test_the_package_offers_every_class_that_its_modules_define():
    modules = [module for name, module in sys.modules.items() if name.startswith("lit_pref.objectives.")]
    assert classes_by_name(modules).keys() >= {"DPO", "Hard", "MarginTarget", "Fitted", "Sum", "EpsilonStep"}
