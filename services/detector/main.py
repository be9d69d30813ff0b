"""Wires the detector."""

from services.detector import READS, consumers, routes, workers
from services.detector.domain.rule import Rule
from services.detector.service import BoardRules, Detector, Retention
from services.detector.settings import DetectorSettings
from services.detector.store import DetectorStore
from shared.clock import new_id
from shared.service import Environment, Service


def build(env: Environment) -> Service:
    """Wire."""
    settings = DetectorSettings()
    service = Service("detector", env, READS)
    detector = Detector(
        DetectorStore(),
        clock=service.clock,
        new_id=new_id,
        rule=Rule(
            settings.min_volume,
            settings.min_open_interest,
            settings.min_last_usd,
            settings.min_volume_oi_ratio,
        ),
        board=BoardRules(settings.board_size, settings.board_least, settings.board_share),
        retention=Retention(settings.activity_days, settings.board_days),
    )
    service.consume(consumers.table(detector))
    service.work(workers.LeaderboardWorker(detector, service.door, interval_s=settings.board_interval_s))
    service.schedule(workers.retention(detector, service.door))
    service.serve(routes.handlers(detector, service.door))
    return service
