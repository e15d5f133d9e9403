"""Steps against the plan's predictions, in the tests' own time."""

from nexus.core.plan import Mode, Row
from nexus.runtime.vllm.watch import STEPS_TO_WARN, Scheduled, StepWatch

FUSED = Mode("fused", 512)
ROW = Row(8, 1000, 512, "fused-512", tbt_ms=10.0)
STEP = Scheduled(FUSED, ROW, decodes=8, prompt_tokens=512)


def run(watch: StepWatch, step: Scheduled, count: int, step_s: float, start_s: float) -> list[str]:
    warnings = []
    for index in range(count):
        watch.scheduled(step)
        warning = watch.ended(start_s + index * step_s)
        if warning:
            warnings.append(warning)
    return warnings


def test_slow_steps_warn_once() -> None:
    watch = StepWatch()
    assert run(watch, STEP, STEPS_TO_WARN, 0.014, 0.0) == []  # the first has no time
    (warning,) = run(watch, STEP, 3 * STEPS_TO_WARN, 0.014, 2.0)
    assert "nexus profile" in warning


def test_steps_within_the_tolerance_do_not_warn() -> None:
    watch = StepWatch()
    assert run(watch, STEP, 500, 0.0129, 0.0) == []
    tally = watch.take()
    assert (tally.steps, tally.compared) == ({"fused-512": 500}, 499)
    assert abs(tally.measured_s / tally.predicted_s - 1.29) < 1e-6
    assert watch.take().compared == 0


def test_what_the_plan_does_not_predict_is_not_compared() -> None:
    half = Scheduled(FUSED, ROW, decodes=8, prompt_tokens=256)
    other = Scheduled(Mode("overlap", 512, prefill_sms=4), ROW, decodes=8, prompt_tokens=0)
    alone = Scheduled(FUSED, ROW, decodes=0, prompt_tokens=512)
    assert [step.predicted_ms for step in (STEP, half, other, alone)] == [10.0, 0.0, 0.0, 0.0]


def test_time_over_an_empty_step_is_not_measured() -> None:
    watch = StepWatch()
    for step, end_s in ((STEP, 1.0), (None, 5.0), (STEP, 9.0), (STEP, 9.01)):
        watch.scheduled(step)
        watch.ended(end_s)
    assert watch.take().compared == 1


def test_a_line_a_minute() -> None:
    watch = StepWatch()
    assert watch.line(0.0) is None
    run(watch, STEP, 10, 0.01, 1.0)
    assert watch.line(59.0) is None
    line = watch.line(60.0)
    assert line is not None
    assert "fused-512 10" in line
    assert "10.0 ms, predicted 10.0 ms" in line
    assert watch.line(121.0) is None
