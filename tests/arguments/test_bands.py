"""Flags of channels, ranges and missing data become fields of the configuration."""

from dataclasses import dataclass

import pytest

from mae.arguments.bands import BandArguments
from mae.utils.errors import UserError


@dataclass
class Flags(BandArguments):
    pass


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({}, {}),
        ({"channels": ["4,3,2"]}, {"input_channels": [4, 3, 2]}),
        ({"channels": ["B4", "3"]}, {"input_channels": ["B4", 3]}),
        ({"value_range": ["auto"]}, {"value_range": (0.0, 1.0)}),
        ({"value_range": ["-1", "2.5"]}, {"value_range": [(-1.0, 2.5)]}),
        ({"value_range": ["0", "1", "0", "10"]}, {"value_range": [(0.0, 1.0), (0.0, 10.0)]}),
        ({"nodata": 0.0}, {"nodata": 0.0}),
    ],
)
def test_flags_are_fields(flags, fields):
    assert Flags(**flags).file_fields() == fields


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"channels": ["0", "1"]}, "--channels 0 1 must be numbers from 1"),
        ({"channels": ["4,,2"]}, "--channels 4,,2 must be"),
        ({"value_range": ["1"]}, "--value_range 1 must be a low and a higher number"),
        ({"value_range": ["2", "1"]}, "--value_range 2 1 must be"),
        ({"value_range": ["0", "1", "3", "3"]}, "--value_range 0 1 3 3 must be"),
        ({"value_range": ["low", "high"]}, "--value_range low high must be numbers, or auto"),
        ({"value_range": ["nan", "1"]}, "--value_range nan 1 must be"),
    ],
)
def test_impossible_values_name_the_flag(flags, message):
    with pytest.raises(UserError, match=message):
        Flags(**flags)
