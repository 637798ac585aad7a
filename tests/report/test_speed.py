from gpo.report.speed import Speed


def test_speed_is_that_of_the_last_minute() -> None:
    speed = Speed(window=60)
    assert (speed.per_second, speed.left(10)) == (0.0, None)
    speed.note(0, 0)
    assert (speed.per_second, speed.left(10)) == (0.0, None)
    speed.note(10, 100)
    assert (speed.per_second, speed.left(150)) == (10.0, 5.0)
    for second in (20, 30, 40, 50, 60, 70, 80, 90):
        speed.note(second, 100 + second - 10)  # ten times slower
    assert speed.per_second == 1.0
    assert speed.left(100) == 0.0


def test_a_piece_longer_than_the_window_has_a_speed() -> None:
    speed = Speed(window=60)
    for hour in range(3):
        speed.note(3600 * hour, 7200 * hour)
    assert speed.per_second == 2.0
    speed.note(7200, 14400)  # no time has gone by
    assert speed.per_second == 2.0
