"""Conformance suites for implementations of the interfaces of this package; call them in your tests.

Each function raises AssertionError with what the implementation does wrong. For example::

    def test_my_trainable_fulfils_the_contract():
        check_trainable(MyTrainable(), {"epochs": 2})
"""

from orchestrator.testing.components import check_sampler, check_scheduler, check_trainable
from orchestrator.testing.stores import check_store

__all__ = ["check_sampler", "check_scheduler", "check_store", "check_trainable"]
