from edge.channel.culprits import FIRST_BAR_S, LAST_BAR_S, MAX_BARRED, Culprits

ASKED = "publish homeassistant/device/x/config"


def test_what_a_broker_hangs_up_at_again_and_again_is_left_out_for_a_while_and_ever_longer() -> None:
    culprits, now_s = Culprits(), 0.0
    assert not culprits.is_careful
    assert [culprits.ended(ASKED, 0.1, now_s) for _ in range(2)] == [False, False]
    assert culprits.is_careful
    assert culprits.ended(ASKED, 0.1, now_s)
    assert not culprits.is_careful
    first = ["late", "late", ASKED, ASKED]
    assert [Culprits().ended(each, 0.1, now_s) for each in first] == [False] * 4
    late = Culprits()
    assert [late.ended(each, 0.1, now_s) for each in first] == [False, False, False, True]
    assert not late.is_barred("late", now_s)
    lasts_s = FIRST_BAR_S
    for _ in range(12):
        assert culprits.is_barred(ASKED, now_s + lasts_s - 1)
        assert not culprits.is_barred("publish another", now_s)
        now_s += lasts_s
        assert not culprits.is_barred(ASKED, now_s)
        for _ in range(2):
            assert not culprits.ended("publish what is answered late", 0.1, now_s)
        assert culprits.ended(ASKED, 0.1, now_s), "once is enough by now"
        lasts_s = min(2 * lasts_s, LAST_BAR_S)
    now_s += LAST_BAR_S
    culprits.answered(ASKED)  # the rights were changed
    assert [culprits.ended(ASKED, 0.1, now_s) for _ in range(2)] == [False, False]


def test_a_bad_line_is_no_refusal() -> None:
    culprits = Culprits()
    for n in range(30):
        assert not culprits.ended(f"publish {n % 2}", 0.1, 0.0)
        assert not culprits.ended(ASKED, 11.0, 0.0)
        assert not culprits.ended("", 0.1, 0.0)


def test_what_is_known_is_bounded() -> None:
    culprits = Culprits()
    for n in range(5 * MAX_BARRED):
        for _ in range(3):
            culprits.ended(str(n), 0.1, 0.0)
    assert len(culprits._bars) == MAX_BARRED
