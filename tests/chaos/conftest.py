from tests.messaging.conftest import only_on_apache, probe, probe_url

__all__ = ["only_on_apache", "probe", "probe_url"]
