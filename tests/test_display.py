"""What a run shows; a real terminal is in test_fit.py."""

import torchcls as tc
from torchcls.display import Display


def test_the_names_of_the_columns_stand_above_the_first_row_that_is_shown(capsys):
    display = Display(None, 5, None)
    display.say("going on")
    display.show(tc.Record(epoch=3, train_loss=0.5, time=1.0))
    display.show(tc.Record(epoch=4, train_loss=0.25, time=1.0))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["going", "on"],
        ["epoch", "train_loss", "time"],
        ["3", "0.500000", "1.00s"],
        ["4", "0.250000", "1.00s"],
    ]


def test_where_nothing_is_to_be_shown_nothing_is(capsys):
    display = Display(False, 1, None)
    display.say("going on")
    display.show(tc.Record(epoch=0, train_loss=0.5, time=1.0))
    assert capsys.readouterr() == ("", "")
