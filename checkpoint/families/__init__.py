"""The families of Kleins, a file each. ARCHITECTURE.md says how to add one."""

from .family import Family
from .flux2_klein import FLUX2_KLEIN
from .flux3_klein import FLUX3_KLEIN

FAMILIES: dict[str, Family] = {family.name: family for family in (FLUX2_KLEIN, FLUX3_KLEIN)}
