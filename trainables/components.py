"""Components of a config: methods, encoders, data set readers, batch samplers and augmentations.

A component is a class. A config names it by a short name or by ``package.module:Class``, with its options in
a field next to the name. The class attribute ``Options``, a subclass of `Options`, is the model of these
options; without it, a component has no options. `trainables.testing` has a check for each kind of component.
"""

# Defined in network/, which an exported model contains, and which therefore imports nothing from outside.
from trainables.network.components import Options, check_options, component_name, find, options_of

__all__ = ["Options", "check_options", "component_name", "find", "options_of"]
