"""The states through Salt's loader."""

from __future__ import annotations


def test_an_instance_that_is_not_in_the_settings_is_refused(states):
    for ret in (
        states.redis_server.running("1"),
        states.redis_server.config("/etc/redis/1.conf", instance="1"),
        states.redis_server.service_absent("1", manager="sysv"),
    ):
        assert ret.result is False
        assert "is not a Redis instance of this minion" in ret.comment
